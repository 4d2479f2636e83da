"""The IDX files of MNIST and Fashion-MNIST, plain or gzipped, read into numpy arrays."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_mnist.errors import DataError

Bytes = npt.NDArray[np.uint8]

SIDE = 28
CLASSES = 10
COUNTS = {"train": 60_000, "t10k": 10_000}
FILES = tuple(f"{part}-{kind}" for part in COUNTS for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))

_UINT8_MAGIC = b"\x00\x00\x08"
_KINDS = {1: "labels", 3: "images"}


def find_file(folder: Path, name: str) -> Path | None:
    """`folder`/`name`, or else `name`.gz, or else None: the plain file wins, as it is read faster."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_bytes(path: Path) -> Bytes:
    """The unpacked bytes of a file (N,) in an array that may be written to, as torch wants it.

    Raises DataError, which names the file, if it cannot be read or its gzip stream is damaged.
    """
    try:
        if path.suffix != ".gz":
            return np.fromfile(path, np.uint8)
        return np.frombuffer(bytearray(gzip.decompress(path.read_bytes())), np.uint8)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: corrupt gzip: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's unpacked bytes, in hex. Raises what `read_bytes` raises."""
    return hashlib.sha256(read_bytes(path).data).hexdigest()


def read_idx(path: Path) -> Bytes:
    """An IDX file of unsigned bytes, of the shape in its header; `.gz` is unpacked.

    Raises DataError, which names the file, if it is no such file, truncated, or longer than its header says.
    """
    raw = read_bytes(path)
    if len(raw) < 4 or raw[:3].tobytes() != _UINT8_MAGIC or raw[3] == 0:
        raise DataError(f"{path}: wrong magic {raw[:4].tobytes().hex()!r}: not an IDX file of unsigned bytes")
    start = 4 + 4 * int(raw[3])
    _check_length(path, len(raw), at_least=start)
    shape = tuple(int(size) for size in raw[4:start].view(">u4"))
    _check_length(path, len(raw), at_least=start + math.prod(shape))
    if trailing := len(raw) - start - math.prod(shape):
        raise DataError(f"{path}: {trailing:,} trailing bytes: expected {len(raw) - trailing:,}, has {len(raw):,}")
    return raw[start:].reshape(shape)


def _check_length(path: Path, length: int, at_least: int) -> None:
    if length < at_least:
        raise DataError(f"{path}: truncated: expected {at_least:,} bytes, has {length:,}")


def load_arrays(folder: Path, train: bool) -> tuple[Bytes, Bytes]:
    """The training or the test set in `folder`: images (N, 28, 28) and labels (N,), both uint8.

    N is 60,000 or 10,000. Raises DataError, which names the file, for a file that is missing, damaged or
    mislabelled, and for sets of another size than the canonical ones.
    """
    part = "train" if train else "t10k"
    image_path, images = _read_kind(folder, f"{part}-images-idx3-ubyte", ndim=3)
    label_path, labels = _read_kind(folder, f"{part}-labels-idx1-ubyte", ndim=1)
    if images.shape[1:] != (SIDE, SIDE):
        height, width = images.shape[1:]
        raise DataError(f"{image_path}: images of {height}x{width} pixels, must be {SIDE}x{SIDE}")
    if len(images) != len(labels):
        raise DataError(
            f"{label_path}: {len(labels):,} labels for the {len(images):,} images of {image_path.name}"
        )
    if len(images) != COUNTS[part]:
        raise DataError(f"{image_path}: {len(images):,} images, the canonical set has {COUNTS[part]:,}")
    if labels.max() >= CLASSES:
        raise DataError(f"{label_path}: label {labels.max()} is outside 0-{CLASSES - 1}")
    return images, labels


def _read_kind(folder: Path, name: str, ndim: int) -> tuple[Path, Bytes]:
    path = find_file(folder, name)
    if path is None:
        raise DataError(f"{folder}: holds neither {name} nor {name}.gz; `lit-mnist data fetch` gets it")
    array = read_idx(path)
    if array.ndim != ndim:
        found = _KINDS.get(array.ndim, f"an array of {array.ndim} dimensions")
        raise DataError(f"{path}: mislabelled: holds {found} where {_KINDS[ndim]} belong")
    return path, array
