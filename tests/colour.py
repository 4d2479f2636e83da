"""A dataset with other images and classes than MNIST: real digits from zero to six, 32×32, in colour.

`write_colour` writes its files. A dataset outside of the package needs no more than the data module.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_mnist.data import ImageDataModule
from lit_mnist.data.datasets import FOUR_FILES, DatasetSpec
from lit_mnist.data.mini import load_mini

COLOURS = np.array([[255, 60, 60], [60, 255, 60], [90, 90, 255]])
COLOUR = DatasetSpec(
    name="Colour",
    description="Digits from zero to six in colour.",
    image_shape=(3, 32, 32),
    class_names=("zero", "one", "two", "three", "four", "five", "six"),
    counts=(210, 70),
    files=FOUR_FILES,
    checksums={},
)


class ColourDataModule(ImageDataModule):
    """Digits from zero to six in colour."""

    spec = COLOUR


def colour_images(train: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 3, 32, 32) and labels (N,), the same number of each class."""
    images, labels = load_mini()[:2] if train else load_mini()[2:]
    per_class = COLOUR.counts[0 if train else 1] // COLOUR.num_classes
    chosen = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(COLOUR.num_classes)])
    resized = np.stack([np.array(Image.fromarray(image).resize((32, 32))) for image in images[chosen]])
    tints = COLOURS[np.arange(len(chosen)) % len(COLOURS)]
    coloured = resized[:, None] * (tints[:, :, None, None] / 255)
    return coloured.round().astype(np.uint8), labels[chosen]


def write_colour(root: Path) -> None:
    """Write the four IDX files to `root/Colour/raw`."""
    folder = root / COLOUR.name / "raw"
    folder.mkdir(parents=True)
    for train, names in ((True, FOUR_FILES[:2]), (False, FOUR_FILES[2:])):
        for name, array in zip(names, colour_images(train), strict=True):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / name).write_bytes(header + array.tobytes())
