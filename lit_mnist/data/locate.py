"""Where a dataset's files are on this machine: `--data.root`, LIT_MNIST_DATA, ./data, or a system package."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from lit_mnist.data.datasets import DOWNLOADS, DatasetSpec
from lit_mnist.data.idx import find_file, sha256
from lit_mnist.errors import DataError

ROOT_VARIABLE = "LIT_MNIST_DATA"
DEFAULT_ROOT = "data"


class NotFoundError(DataError):
    """None of the folders that were searched holds the dataset."""


@dataclass(frozen=True)
class Location:
    """A dataset's folder of IDX files, and the rule by which it was found."""

    dataset: str
    folder: Path
    source: str


def default_root() -> Path:
    """The folder into which `lit-mnist data fetch` puts datasets: LIT_MNIST_DATA if it is set, else ./data."""
    return Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def raw_folder(root: Path, dataset: str) -> Path:
    """The folder of a dataset's IDX files below a root, in torchvision's layout."""
    return root / dataset / "raw"


def find_root(spec: DatasetSpec, root: str | None) -> Location:
    """Find the folder that holds a dataset, and check that it is not another dataset's.

    Args:
        spec: The dataset.
        root: The only place to look at; it holds `NAME/raw`, or the IDX files directly. Without it the places are
            LIT_MNIST_DATA, ./data and the system package, and the first that exists is taken.

    Raises:
        NotFoundError: No place exists. The message names the places and the ways to get the dataset.
        DataError: The folder holds the files of another dataset.

    """
    # Only one place is considered: mixing files of several copies could mix datasets.
    location = locate(spec, root)
    # Files of these datasets have the same names and sizes: a wrong folder would be trained on without any error.
    if other := _other_dataset(location.folder, spec):
        raise DataError(f"{location.folder} ({location.source}) holds {other}, not {spec.name}")
    return location


def locate(spec: DatasetSpec, root: str | None) -> Location:
    """Find the folder as `find_root` does, without checking the files in it.

    Raises:
        NotFoundError: No place exists.

    """
    if root is not None:
        given = Path(root).expanduser()
        # The four files directly in the folder; unless they are another dataset's, since all have the same names.
        flat = any(find_file(given, name) for name in spec.files or ()) and not _other_dataset(given, spec)
        places = [Location(spec.name, given if flat else raw_folder(given, spec.name), "--data.root")]
    else:
        # In the order in which they are tried: LIT_MNIST_DATA, if it is set, comes before ./data.
        roots = [(Path(DEFAULT_ROOT), f"./{DEFAULT_ROOT}")]
        if variable := os.environ.get(ROOT_VARIABLE):
            roots.insert(0, (Path(variable).expanduser(), ROOT_VARIABLE))
        places = [Location(spec.name, raw_folder(folder, spec.name), source) for folder, source in roots]
        if package := spec.system_package:
            places.append(Location(spec.name, package.folder, f"Debian's {package.name}"))
    # The first that exists, even if it is incomplete: falling back to another copy would hide a damaged dataset.
    for place in places:
        if place.folder.is_dir():
            return place
    looked = ", ".join(f"{place.folder} ({place.source})" for place in places)
    raise NotFoundError(f"{spec.name} not found: looked for {looked}. {_ways_to_get(spec)}")


def file_error(spec: DatasetSpec, name: str, folder: Path) -> str | None:
    """Check a dataset's file against its published checksum: the error, or None if the file is right.

    `name` is the unpacked file's name. Where only the compressed file's checksum is published, the compressed file
    must be there. An unpacked file next to it would be read instead, so it must have the same content.
    """
    # Three cases: a checksum of the content, of the archive only, or none at all.
    packed = f"{name}.gz" in spec.checksums
    path, archive = find_file(folder, name), folder / f"{name}.gz"
    if path is None:
        return "missing"
    if not packed and name not in spec.checksums:
        return "cannot be verified: no checksum is known"
    try:
        if not packed:
            digest = sha256(path)
        elif not archive.is_file():
            return f"cannot be verified: {archive.name}, whose checksum is published, is missing"
        elif path != archive and sha256(path) != sha256(archive):
            return f"wrong content: differs from {archive.name}"
        else:
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    except (DataError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")
    expected = spec.checksums[f"{name}.gz" if packed else name]
    return None if digest == expected else f"wrong content: SHA-256 is {digest}, must be {expected}"


def _other_dataset(folder: Path, spec: DatasetSpec) -> str | None:
    """The name of the other dataset whose training labels are in `folder`, if there is one.

    No test file is read: training must work without them, and the labels tell the datasets apart.
    """
    for other in DOWNLOADS.values():
        # About 60 kB per dataset: labels, not images, are hashed.
        if other.name != spec.name and other.files and file_error(other, other.files.train_labels, folder) is None:
            return other.name
    return None


def _ways_to_get(spec: DatasetSpec) -> str:
    # The easiest way comes first: fetch, then the system package, then an existing folder.
    ways = [f"point --data.root or {ROOT_VARIABLE} at a folder that holds {spec.name}/raw"]
    if package := spec.system_package:
        ways.insert(0, f"`apt install {package.name}`")
    if spec.mirrors:
        ways.insert(0, f"run `lit-mnist data fetch --dataset {spec.name}`")
    advice = f"To get it: {', or '.join(ways)}"
    if spec.system_package is None:
        for other in DOWNLOADS.values():
            if other.system_package:
                advice += f" (Debian's package {other.system_package.name} holds only {other.name})"
    return advice
