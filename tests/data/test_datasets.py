from pathlib import Path

import pytest

from lit_mnist.data import datasets as roots
from lit_mnist.data.datasets import default_root, find_root
from lit_mnist.data.idx import FILES
from lit_mnist.errors import UserError


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory, an environment and a Debian folder without datasets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_MNIST_DATA", raising=False)
    monkeypatch.setattr(roots, "DEBIAN_FOLDER", tmp_path / "debian")


def put(root: Path, dataset: str) -> Path:
    folder = root / dataset / "raw"
    folder.mkdir(parents=True)
    (folder / FILES[0]).touch()
    return folder


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MNIST_DATA", str(tmp_path / "variable"))
    found = []
    (tmp_path / "debian").mkdir()
    found.append(find_root("FashionMNIST", None).source)
    put(tmp_path / "data", "FashionMNIST")
    found.append(find_root("FashionMNIST", None).source)
    put(tmp_path / "variable", "FashionMNIST")
    found.append(find_root("FashionMNIST", None).source)
    folder = put(tmp_path / "given", "FashionMNIST")
    location = find_root("FashionMNIST", str(tmp_path / "given"))
    assert found == ["Debian's dataset-fashion-mnist", "./data", "LIT_MNIST_DATA"]
    assert location == roots.Location("FashionMNIST", folder, "--data.root")


def test_a_given_root_without_the_dataset_is_never_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "data", "MNIST")
    put(tmp_path / "given", "FashionMNIST")
    with pytest.raises(UserError, match=r"MNIST not found: .*given/MNIST/raw \(--data.root\)"):
        find_root("MNIST", str(tmp_path / "given"))


def test_debians_package_is_no_mnist(tmp_path: Path) -> None:
    (tmp_path / "debian").mkdir()
    with pytest.raises(UserError, match="holds only FashionMNIST"):
        find_root("MNIST", None)


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST"])
def test_a_missing_dataset_names_the_places_and_the_ways_to_get_it(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_MNIST_DATA", "/nowhere")
    with pytest.raises(UserError) as caught:
        find_root(dataset, None)
    message = str(caught.value)
    for part in (f"/nowhere/{dataset}/raw (LIT_MNIST_DATA)", f"data/{dataset}/raw (./data)"):
        assert part in message
    for way in ("`lit-mnist data fetch", "dataset-fashion-mnist", "--data.root or LIT_MNIST_DATA"):
        assert way in message
    assert "\n" not in message


def test_a_given_root_may_hold_the_files_themselves(tmp_path: Path) -> None:
    (tmp_path / f"{FILES[0]}.gz").touch()
    assert find_root("MNIST", str(tmp_path)).folder == tmp_path


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = put(tmp_path / "sets", "MNIST")
    assert find_root("MNIST", "~/sets").folder == folder


def test_fetch_goes_to_the_variable_or_to_data(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_root() == Path("data")
    monkeypatch.setenv("LIT_MNIST_DATA", "/sets")
    assert default_root() == Path("/sets")


def test_one_dataset_under_the_others_name_is_refused(tmp_path: Path, full_data: str) -> None:
    fashion = Path(full_data, "FashionMNIST", "raw").absolute()
    (tmp_path / "MNIST").mkdir()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir()
    (raw / FILES[1]).symlink_to(fashion / FILES[1])  # the labels for training: no test file is needed to know it
    with pytest.raises(UserError, match="holds FashionMNIST, not MNIST"):
        find_root("MNIST", str(tmp_path))
    with pytest.raises(UserError, match="MNIST not found"):
        find_root("MNIST", str(fashion))
    assert find_root("FashionMNIST", str(fashion)).folder == fashion
