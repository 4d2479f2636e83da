"""IDX files, the format of MNIST, plain or gzipped, read into numpy arrays.

torchvision reads the format as well, but not gzipped files, and its assertion errors do not name the truncated or
mislabelled file. Importing it would also delay `lit-mnist data` by seconds.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_mnist.data.datasets import DatasetSpec
from lit_mnist.errors import DataError

Bytes = npt.NDArray[np.uint8]


def find_file(folder: Path, name: str) -> Path | None:
    """The path of `name` in `folder`, or of `name.gz`; None if neither exists.

    The plain file is preferred, since it is read faster.
    """
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_bytes(path: Path) -> Bytes:
    """The content of a file as a writable array (N,); `.gz` is unpacked.

    Raises:
        DataError: The file cannot be read, or its gzip stream is damaged. The message names the file.

    """
    try:
        # fromfile reads straight into the array, without a copy as bytes.
        if path.suffix != ".gz":
            return np.fromfile(path, np.uint8)
        # torch.from_numpy warns about read-only memory, which an array on top of `bytes` would have.
        return np.frombuffer(bytearray(gzip.decompress(path.read_bytes())), np.uint8)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: corrupt gzip: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's unpacked content, in hex.

    Raises:
        DataError: As `read_bytes`.

    """
    return hashlib.sha256(read_bytes(path).data).hexdigest()


def read_idx(path: Path) -> Bytes:
    """Read an IDX file of unsigned bytes into an array of the shape in its header.

    The header is two zero bytes, the element type (8: unsigned byte), the number of dimensions, and each dimension
    as a big-endian uint32.

    Raises:
        DataError: The file is not of this format, truncated, or longer than its header says. The message names it.

    """
    raw = read_bytes(path)
    if len(raw) < 4 or raw[:3].tobytes() != b"\x00\x00\x08" or raw[3] == 0:
        raise DataError(f"{path}: wrong magic {raw[:4].tobytes().hex()!r}: not an IDX file of unsigned bytes")
    # Offset of the first element.
    start = 4 + 4 * int(raw[3])
    # A file that ends within its header has no shape, and is reported as truncated below.
    shape = tuple(int(size) for size in raw[4:start].view(">u4")) if len(raw) >= start else ()
    expected = start + math.prod(shape) if shape else start
    if len(raw) < expected:
        raise DataError(f"{path}: truncated: expected {expected:,} bytes, has {len(raw):,}")
    if len(raw) > expected:
        trailing = len(raw) - expected
        raise DataError(f"{path}: {trailing:,} trailing bytes: expected {expected:,}, has {len(raw):,}")
    return raw[start:].reshape(shape)


def load_arrays(spec: DatasetSpec, folder: Path, train: bool) -> tuple[Bytes, Bytes]:
    """Read a dataset's training or test set, and check it against the dataset's specification.

    Returns:
        Images (N, C, H, W) and labels (N,), both uint8 and writable.

    Raises:
        DataError: A file is missing, damaged or mislabelled, or the set has another size than the published one.
            The message names the file.

    """
    assert spec.files is not None, f"{spec.name} does not consist of IDX files"
    # MNIST's files of grey images have no channel axis.
    channels = spec.image_shape[0]
    dimensions = {"images": 3 if channels == 1 else 4, "labels": 1}
    read: dict[str, tuple[Path, Bytes]] = {}
    for kind, name in zip(dimensions, spec.files[:2] if train else spec.files[2:], strict=True):
        path = find_file(folder, name)
        if path is None:
            raise DataError(
                f"{folder}: holds neither {name} nor {name}.gz; `lit-mnist data fetch --dataset {spec.name}`"
                " downloads it"
            )
        array = read_idx(path)
        if array.ndim != dimensions[kind]:
            other = {ndim: known for known, ndim in dimensions.items()}
            found = other.get(array.ndim, f"an array of {array.ndim} dimensions")
            raise DataError(f"{path}: mislabelled: holds {found} where {kind} belong")
        read[kind] = path, array
    (image_path, images), (label_path, labels) = read["images"], read["labels"]
    if channels == 1:
        images = images[:, None]  # (N, H, W) -> (N, 1, H, W)
    if images.shape[1:] != spec.image_shape:
        found, wanted = (f"{s[1]}x{s[2]}" for s in (images.shape[1:], spec.image_shape))
        if images.shape[1] != channels:
            found, wanted = f"{images.shape[1]}x{found}", f"{channels}x{wanted}"
        raise DataError(f"{image_path}: images of {found} pixels, must be {wanted}")
    if len(images) != len(labels):
        raise DataError(
            f"{label_path}: {len(labels):,} labels for the {len(images):,} images of {image_path.name}"
        )
    # A set of a different size is a different dataset or a subset: results would not be comparable.
    if len(images) != (count := spec.counts[0 if train else 1]):
        raise DataError(f"{image_path}: {len(images):,} images, the canonical set has {count:,}")
    # Otherwise the loss would fail with an assertion on the GPU, far from the cause.
    if labels.max() >= spec.num_classes:
        raise DataError(f"{label_path}: label {labels.max()} is outside 0-{spec.num_classes - 1}")
    return images, labels
