"""Where a dataset lies on this machine, and what its files must contain."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_mnist.data.idx import FILES, find_file, sha256
from lit_mnist.errors import DataError

ROOT_VARIABLE = "LIT_MNIST_DATA"
DEFAULT_ROOT = "data"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# Of the unpacked bytes: mirrors pack the same files differently (Debian's .gz differ from Zalando's).
SHA256 = {
    "MNIST": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
DATASETS = tuple(SHA256)


class NotFoundError(DataError):
    """A dataset is in none of the places where it was looked for."""


@dataclass(frozen=True)
class Location:
    """A dataset's folder of IDX files, and the rule that led to it."""

    dataset: str
    folder: Path
    source: str


def default_root() -> Path:
    """Where `lit-mnist data fetch` puts datasets: LIT_MNIST_DATA if it is set, else ./data."""
    return Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def raw_folder(root: Path, dataset: str) -> Path:
    """The folder of a dataset's IDX files under a root, in torchvision's layout."""
    return root / dataset / "raw"


def find_root(dataset: str, root: str | None) -> Location:
    """The first place that holds `dataset`: `root`, LIT_MNIST_DATA, ./data, Debian's package.

    A `root` that is given is the only place looked at; it may also hold the IDX files directly.
    Raises NotFoundError if there is no such place, DataError if it holds the other dataset's files.
    """
    location = locate(dataset, root)
    # The two datasets' files bear the same names and shapes, so a wrong folder would train without complaint.
    if other := _other_dataset(location.folder, dataset):
        raise DataError(f"{location.folder} ({location.source}) holds {other}, not {dataset}")
    return location


def locate(dataset: str, root: str | None) -> Location:
    """As `find_root`, but without a look into the files."""
    places = list(_places(dataset, root))
    for place in places:
        if place.folder.is_dir():
            return place
    looked = ", ".join(f"{place.folder} ({place.source})" for place in places)
    raise NotFoundError(f"{dataset} not found: looked for {looked}. {_ways_to_get(dataset)}")


def _places(dataset: str, root: str | None) -> Iterator[Location]:
    if root is not None:
        given = Path(root).expanduser()
        flat = any(find_file(given, name) for name in FILES) and not _other_dataset(given, dataset)
        yield Location(dataset, given if flat else raw_folder(given, dataset), "--data.root")
        return
    if variable := os.environ.get(ROOT_VARIABLE):
        yield Location(dataset, raw_folder(Path(variable).expanduser(), dataset), ROOT_VARIABLE)
    yield Location(dataset, raw_folder(Path(DEFAULT_ROOT), dataset), f"./{DEFAULT_ROOT}")
    if dataset == "FashionMNIST":
        yield Location(dataset, DEBIAN_FOLDER, f"Debian's {DEBIAN_PACKAGE}")


def _other_dataset(folder: Path, dataset: str) -> str | None:
    name = "train-labels-idx1-ubyte"  # no test file is read to train, not even to name the dataset
    path = find_file(folder, name)
    if path is None:
        return None
    try:
        digest = sha256(path)
    except DataError:  # who reads the file will say what is wrong with it
        return None
    return next((other for other in DATASETS if other != dataset and SHA256[other][name] == digest), None)


def _ways_to_get(dataset: str) -> str:
    command = f"run `lit-mnist data fetch --dataset {dataset}`"
    copy = f"point --data.root or {ROOT_VARIABLE} at a folder that holds {dataset}/raw"
    if dataset == "FashionMNIST":
        return f"To get it: {command}, or `apt install {DEBIAN_PACKAGE}`, or {copy}"
    return f"To get it: {command}, or {copy} (Debian's package {DEBIAN_PACKAGE} holds only FashionMNIST)"
