"""A project written by version 0.1.0 can still be used.

`stored/v0.1.tar.xz` is a project folder of that version with a finished fit, a fit that was killed by SIGKILL, and
a sweep that was interrupted by SIGTERM when 2 of its 6 trials were finished and one had begun.
"""

import json
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import mlflow
import pytest
from packaging.version import Version

STORED = Path(__file__).parent / "stored" / "v0.1.tar.xz"
FINISHED, KILLED = "4760cd29746a4611ad4250b8360e2d87", "55086c37e514446489c5885ca99ffd7a"
TRIAL = "6cb1df4ef98540be871abbe2a688f687"
WRITTEN_AT = "/tmp/stored/project"

pytestmark = pytest.mark.skipif(
    Version(mlflow.__version__) < Version("3.17"), reason="needs MLflow 3.17, whose schema the stored database has"
)


@pytest.fixture
def stored(project: Path) -> Path:
    """The stored project, unpacked, with all its paths changed to this folder."""
    with tarfile.open(STORED) as archive:
        archive.extractall(project, filter="data")
    for path in project.rglob("run.json"):
        path.write_text(path.read_text().replace(WRITTEN_AT, str(project)))
    database = sqlite3.connect(project / "mlruns" / "mlflow.db")
    with database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (WRITTEN_AT, str(project)))
    database.close()
    return project


def _lit_mnist(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "lit_mnist.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _runs() -> dict[str, dict[str, object]]:
    return {run["id"]: run for run in json.loads(_lit_mnist("runs", "--json"))}


def test_a_finished_run_is_listed_tested_and_extended(stored: Path) -> None:
    assert _runs()[FINISHED]["status"] == "FINISHED"
    assert "test/acc" in _lit_mnist("test", "--run", FINISHED)
    assert "goes on from step 10" in _lit_mnist("fit", "--resume", FINISHED, "--trainer.max_epochs", "4")


def test_a_killed_run_goes_on_from_its_checkpoint(stored: Path) -> None:
    output = _lit_mnist("fit", "--resume", KILLED, "--trainer.max_epochs", "116")
    assert f"{KILLED} in experiment zhang/cnn goes on from step 560" in output
    # Options that version 0.1 did not have are not reported as changed.
    assert [line.split(":")[0] for line in output.splitlines() if "→" in line] == ["  trainer.max_epochs"]
    assert _runs()[KILLED]["status"] == "FINISHED"


def test_a_sweep_goes_on_with_its_interrupted_trial(stored: Path) -> None:
    assert "2 of 6 trials finished" in _lit_mnist("sweep", "status", "small")
    _lit_mnist("sweep", "small.yaml", "--trials", "4", "--workers", "1")
    assert "4 of 4 trials finished" in _lit_mnist("sweep", "status", "small")
    runs = _runs()
    assert runs[TRIAL]["status"] == "FINISHED"
    # The trials that version 0.1 began keep the names that it gave them.
    assert sum(str(run["name"]).startswith("trial") for run in runs.values()) == 3
    assert sum(str(run["name"]).startswith("03 lr=") for run in runs.values()) == 1
    assert "model.lr" in _lit_mnist("sweep", "best", "small")
