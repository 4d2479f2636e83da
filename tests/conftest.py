import os
from collections.abc import Callable
from pathlib import Path

import pytest

FULL_DATA = os.environ.get("LIT_MNIST_DATA")


def enter_project(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `folder` a project of its own, and the working directory."""
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").touch()
    patch.chdir(folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is a project of its own, and the working directory."""
    return enter_project(tmp_path, monkeypatch)


@pytest.fixture
def full_data() -> str:
    if FULL_DATA is None:
        pytest.skip("needs full MNIST: set LIT_MNIST_DATA")
    return FULL_DATA


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(project: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`lit-mnist ARGUMENTS` in this process; returns exit code, output, errors."""
    from lit_mnist.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


MINI = ("--data", "MiniMNISTDataModule")
SHORT = (*MINI, "--trainer.max_epochs", "1", "--data.train_per_class", "40", "--data.train_size", "null")
