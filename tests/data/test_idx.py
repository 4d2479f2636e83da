"""IDX files: what is read from them, and the errors for damaged files."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lit_mnist.data.datasets import FOUR_FILES, KMNIST, MNIST, DatasetSpec
from lit_mnist.data.idx import Bytes, load_arrays, read_idx
from lit_mnist.data.mini import load_mini
from lit_mnist.errors import UserError

IMAGES, LABELS = FOUR_FILES[2:]


def as_idx(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def arrays() -> tuple[Bytes, Bytes]:
    """10,000 real images and labels, the size of MNIST's test set: MiniMNIST's 5,000 images twice."""
    train_images, train_labels, test_images, test_labels = load_mini()
    images, labels = [train_images, test_images] * 2, [train_labels, test_labels] * 2
    return np.concatenate(images), np.concatenate(labels)


@pytest.fixture
def folder(tmp_path: Path, arrays: tuple[Bytes, Bytes]) -> Path:
    (tmp_path / IMAGES).write_bytes(as_idx(arrays[0]))
    (tmp_path / LABELS).write_bytes(as_idx(arrays[1]))
    return tmp_path


def test_the_arrays_equal_the_content_of_the_files(folder: Path, arrays: tuple[Bytes, Bytes]) -> None:
    images, labels = load_arrays(MNIST, folder, train=False)
    assert np.array_equal(images[:, 0], arrays[0])
    assert np.array_equal(labels, arrays[1])
    assert images.dtype == labels.dtype == np.uint8
    assert images.flags.writeable


def test_gz_is_unpacked_and_the_plain_file_is_preferred(tmp_path: Path, arrays: tuple[Bytes, Bytes]) -> None:
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(as_idx(arrays[0]), 1))
    (tmp_path / f"{LABELS}.gz").write_bytes(gzip.compress(as_idx(arrays[1])))
    images, labels = load_arrays(MNIST, tmp_path, train=False)
    assert np.array_equal(images[:, 0], arrays[0])
    assert images.flags.writeable
    (tmp_path / LABELS).write_bytes(as_idx(labels[::-1]))
    assert np.array_equal(load_arrays(MNIST, tmp_path, train=False)[1], labels[::-1])


def test_any_number_of_dimensions_can_be_read(tmp_path: Path, arrays: tuple[Bytes, Bytes]) -> None:
    colour = arrays[0].reshape(-1, 4, 28, 28)
    (tmp_path / "four").write_bytes(as_idx(colour))
    assert np.array_equal(read_idx(tmp_path / "four"), colour)


def with_last_label(labels: Bytes, value: int) -> Bytes:
    return np.append(labels[:-1], np.uint8(value))


DAMAGE: list[tuple[str, Callable[[Bytes, Bytes], bytes], str]] = [
    (IMAGES, lambda x, y: as_idx(x)[:-1], "truncated: expected 7,840,016 bytes, has 7,840,015"),
    (IMAGES, lambda x, y: as_idx(x)[:9], "truncated: expected 16 bytes, has 9"),
    (LABELS, lambda x, y: b"", "wrong magic ''"),
    (LABELS, lambda x, y: as_idx(y) + b"??", "2 trailing bytes: expected 10,008, has 10,010"),
    (IMAGES, lambda x, y: b"\0\0\x0d" + as_idx(x)[3:], "wrong magic '00000d03'"),
    (LABELS, lambda x, y: gzip.compress(as_idx(y)), "wrong magic '1f8b"),
    (IMAGES, lambda x, y: as_idx(y), "mislabelled: holds labels where images belong"),
    (LABELS, lambda x, y: as_idx(x), "mislabelled: holds images where labels belong"),
    (IMAGES, lambda x, y: as_idx(x.reshape(-1, 14, 56)), "images of 14x56 pixels, must be 28x28"),
    (LABELS, lambda x, y: as_idx(y[:-1]), "9,999 labels for the 10,000 images"),
    (LABELS, lambda x, y: as_idx(with_last_label(y, 10)), "label 10 is outside 0-9"),
]
"""File, its damaged content as a function of the images and labels, and the error."""


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE, ids=[case[2] for case in DAMAGE])
def test_the_error_names_the_damaged_file_in_one_line(
    folder: Path,
    arrays: tuple[Bytes, Bytes],
    name: str,
    damage: Callable[[Bytes, Bytes], bytes],
    message: str,
) -> None:
    (folder / name).write_bytes(damage(*arrays))
    with pytest.raises(UserError) as caught:
        load_arrays(MNIST, folder, train=False)
    assert str(caught.value).startswith(f"{folder / name}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [slice(0, 40), slice(0, -1), slice(5, None)])
def test_the_error_names_a_damaged_gzip_file(folder: Path, arrays: tuple[Bytes, Bytes], cut: slice) -> None:
    (folder / LABELS).unlink()
    packed = folder / f"{LABELS}.gz"
    packed.write_bytes(gzip.compress(as_idx(arrays[1]))[cut])
    with pytest.raises(UserError, match=f"{packed}: corrupt gzip: "):
        load_arrays(MNIST, folder, train=False)


def test_a_set_of_another_size_is_refused(folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("t10k", "train"))
    with pytest.raises(UserError, match="10,000 images, the canonical set has 60,000"):
        load_arrays(MNIST, folder, train=True)
    with pytest.raises(UserError, match=f"{folder}: holds neither {IMAGES} nor {IMAGES}.gz"):
        load_arrays(MNIST, folder, train=False)


def test_the_channels_of_colour_images_come_first(tmp_path: Path, arrays: tuple[Bytes, Bytes]) -> None:
    colour = arrays[0][:9_999].reshape(-1, 3, 28, 28)
    labels = arrays[1][: len(colour)]
    spec = DatasetSpec("Colour", "", (3, 28, 28), MNIST.class_names, (0, len(colour)), FOUR_FILES, {})
    (tmp_path / IMAGES).write_bytes(as_idx(colour))
    (tmp_path / LABELS).write_bytes(as_idx(labels))
    images, read = load_arrays(spec, tmp_path, train=False)
    assert np.array_equal(images, colour) and np.array_equal(read, labels)
    (tmp_path / IMAGES).write_bytes(as_idx(colour[:, :2]))
    with pytest.raises(UserError, match="images of 2x28x28 pixels, must be 3x28x28"):
        load_arrays(spec, tmp_path, train=False)
    (tmp_path / IMAGES).write_bytes(as_idx(colour[:, 0]))
    with pytest.raises(UserError, match="holds an array of 3 dimensions where images belong"):
        load_arrays(spec, tmp_path, train=False)


def test_kmnist_is_read_like_mnist(folder: Path, arrays: tuple[Bytes, Bytes]) -> None:
    images, labels = load_arrays(KMNIST, folder, train=False)
    assert np.array_equal(images[:, 0], arrays[0]) and np.array_equal(labels, arrays[1])


def test_the_full_training_set_is_read(full_data: str) -> None:
    images, labels = load_arrays(MNIST, Path(full_data, "MNIST", "raw"), train=True)
    assert images.shape == (60_000, 1, 28, 28)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert round(float(images.mean()) / 255, 4) == 0.1307
