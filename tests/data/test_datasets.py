"""The registry of datasets, and the places that are searched for their files."""

import dataclasses
from pathlib import Path

import pytest

from lit_mnist.data.datasets import (
    DATASETS,
    DOWNLOADS,
    FASHION_MNIST,
    FOUR_FILES,
    MNIST,
    DatasetSpec,
    SystemPackage,
)
from lit_mnist.data.locate import Location, default_root, find_root
from lit_mnist.errors import UserError


@pytest.fixture(autouse=True)
def machine_without_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no LIT_MNIST_DATA."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_MNIST_DATA", raising=False)


@pytest.fixture
def fashion(tmp_path: Path) -> DatasetSpec:
    """Fashion-MNIST, with the folder of its Debian package below `tmp_path`."""
    return dataclasses.replace(FASHION_MNIST, system_package=SystemPackage("a-package", tmp_path / "debian"))


def add_dataset(root: Path, dataset: str) -> Path:
    """Make a folder that is recognised as that dataset's; returns it."""
    folder = root / dataset / "raw"
    folder.mkdir(parents=True)
    (folder / FOUR_FILES.train_images).touch()
    return folder


def test_places_are_searched_in_order(
    tmp_path: Path, fashion: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_MNIST_DATA", str(tmp_path / "variable"))
    found = []
    (tmp_path / "debian").mkdir()
    found.append(find_root(fashion, None).source)
    add_dataset(tmp_path / "data", "FashionMNIST")
    found.append(find_root(fashion, None).source)
    add_dataset(tmp_path / "variable", "FashionMNIST")
    found.append(find_root(fashion, None).source)
    folder = add_dataset(tmp_path / "given", "FashionMNIST")
    location = find_root(fashion, str(tmp_path / "given"))
    assert found == ["Debian's a-package", "./data", "LIT_MNIST_DATA"]
    assert location == Location("FashionMNIST", folder, "--data.root")


def test_a_given_root_is_the_only_place_searched(tmp_path: Path) -> None:
    add_dataset(tmp_path / "data", "MNIST")
    add_dataset(tmp_path / "given", "FashionMNIST")
    with pytest.raises(UserError, match=r"MNIST not found: .*given/MNIST/raw \(--data.root\)"):
        find_root(MNIST, str(tmp_path / "given"))


def test_the_error_for_missing_mnist_says_that_debians_package_lacks_it() -> None:
    with pytest.raises(UserError, match="dataset-fashion-mnist holds only FashionMNIST"):
        find_root(MNIST, None)


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_the_error_for_a_missing_dataset_names_places_and_ways_to_get_it(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_MNIST_DATA", "/nowhere")
    with pytest.raises(UserError) as caught:
        find_root(dataclasses.replace(DOWNLOADS[dataset], system_package=None), None)
    message = str(caught.value)
    for part in (f"/nowhere/{dataset}/raw (LIT_MNIST_DATA)", f"data/{dataset}/raw (./data)"):
        assert part in message
    for way in ("`lit-mnist data fetch", "dataset-fashion-mnist", "--data.root or LIT_MNIST_DATA"):
        assert way in message
    assert "\n" not in message


def test_a_given_root_may_hold_the_files_directly(tmp_path: Path) -> None:
    (tmp_path / f"{FOUR_FILES.train_images}.gz").touch()
    assert find_root(MNIST, str(tmp_path)).folder == tmp_path


def test_a_tilde_in_the_root_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = add_dataset(tmp_path / "sets", "MNIST")
    assert find_root(MNIST, "~/sets").folder == folder


def test_the_default_root_is_the_variable_or_data(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_root() == Path("data")
    monkeypatch.setenv("LIT_MNIST_DATA", "/sets")
    assert default_root() == Path("/sets")


def test_another_datasets_files_are_refused(tmp_path: Path, full_data: str) -> None:
    fashion = Path(full_data, "FashionMNIST", "raw").absolute()
    (tmp_path / "MNIST").mkdir()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir()
    labels = FOUR_FILES.train_labels  # enough to recognise a dataset: no test file is needed
    (raw / labels).symlink_to(fashion / labels)
    with pytest.raises(UserError, match="holds FashionMNIST, not MNIST"):
        find_root(MNIST, str(tmp_path))
    with pytest.raises(UserError, match="MNIST not found"):
        find_root(MNIST, str(fashion))
    assert find_root(FASHION_MNIST, str(fashion)).folder == fashion


@pytest.mark.parametrize("spec", DATASETS.values(), ids=DATASETS)
def test_the_spec_of_a_dataset_is_consistent(spec: DatasetSpec) -> None:
    assert len(set(spec.class_names)) == spec.num_classes == 10
    if spec.files is None:
        assert not spec.checksums and not spec.mirrors
    else:
        assert {name.removesuffix(".gz") for name in spec.checksums} == set(spec.files) and spec.mirrors
        assert all(len(digest) == 64 for digest in spec.checksums.values())


@pytest.mark.parametrize("spec", DOWNLOADS.values(), ids=DOWNLOADS)
def test_the_spec_of_a_dataset_agrees_with_torchvision(spec: DatasetSpec) -> None:
    from torchvision import datasets

    theirs = getattr(datasets, spec.name)
    assert [name.removesuffix(".gz") for name, _ in theirs.resources] == list(spec.files or ())
    assert {mirror.strip("/") for mirror in theirs.mirrors} & set(spec.mirrors)
    assert tuple(name.rpartition(" - ")[0] or name for name in theirs.classes) == spec.class_names


def test_each_dataset_has_a_data_module() -> None:
    import lit_mnist.data

    for name, spec in DATASETS.items():
        module = getattr(lit_mnist.data, f"{name}DataModule")()
        assert (module.dataset, module.class_names, module.image_shape) == (
            name,
            spec.class_names,
            spec.image_shape,
        )
        assert module.__doc__
