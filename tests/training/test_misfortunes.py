"""During a training, the disk becomes full, the tracking server fails, or the machine is lost with its disk."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHORT
from disks import on_small_disk
from lightning.pytorch import Callback, Trainer
from servers import Server

from lit_mnist.cli import main
from lit_mnist.errors import Interrupted
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.folder import run_folders
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.logger import MLflowTracker
from lit_mnist.tracking.queries.listing import runs
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.fit import fit

FIT = ["--config", "zhang/cnn", *SHORT, "--trainer.max_epochs", "8", "--checkpoint.every_n_steps", "10"]
FILLS_THE_DISK = f"""
from pathlib import Path
from lightning.pytorch import Callback
from lit_mnist.cli import main
from lit_mnist.terminal import quiet
from lit_mnist.guard import guarded
from lit_mnist.tracking.queries.listing import runs
from lit_mnist.tracking.store import find_store
from lit_mnist.training.fit import fit

class Hog(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 25:
            with open("hog", "wb", buffering=0) as hog:
                try:
                    while hog.write(bytes(4096)):
                        pass
                except OSError:
                    pass

Path("pyproject.toml").touch()
quiet()
code = guarded(lambda: fit({FIT!r}, [Hog()]))
Path("hog").unlink()
(run,) = runs(find_store())
print("after:", code, run["status"], flush=True)
code = main(["fit", "--resume", run["id"]])
(run,) = runs(find_store())
print("after:", code, run["status"])
"""
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--uts"]
DIES_AT_STEP_45 = """
import os, signal, sys, time
from lightning.pytorch import Callback
from lit_mnist.tracking.folder import run_folders
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.store import find_store
from lit_mnist.terminal import quiet
from lit_mnist.training.fit import fit

class MachineLost(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step % 10 == 5:
            # A checkpoint is not uploaded while an earlier one is still on its way.
            [folder] = run_folders(find_store().home)
            while not Journal(folder).is_sent():
                time.sleep(0.05)
        if trainer.global_step == 45:
            os.kill(os.getpid(), signal.SIGKILL)

quiet()
fit(sys.argv[1:], [MachineLost()])
"""


def test_a_disk_that_fills_up_during_a_save_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    command = on_small_disk(tmp_path / "disk", 24, [sys.executable, "-c", FILLS_THE_DISK])
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    after = [line for line in done.stdout.splitlines() if line.startswith("after:")]
    assert after == ["after: 1 FAILED", "after: 0 FINISHED"], done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "cannot write the checkpoint" in errors[0] and "No space left" in errors[0]
    assert "goes on from step 20" in done.stdout and "Traceback" not in done.stderr


class ServerTrouble(Callback):
    """Calls the first action at step 12 and the second at step 50."""

    def __init__(self, *actions: Any) -> None:
        self.actions = dict(zip((12, 50), actions, strict=False))

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step > 12:
            time.sleep(0.05)  # else training would end before the trouble has an effect

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if (action := self.actions.pop(trainer.global_step, None)) is not None:
            action()


def _points() -> list[tuple[str, int, float]]:
    """All points of the newest run except timings."""
    client = connect(find_store())
    run = runs(find_store())[0]
    assert run["status"] == "FINISHED"
    names = [name for name in run["metrics"] if not name.startswith("system/") and name != "images_per_s"]
    return sorted((name, p.step, p.value) for name in names for p in client.get_metric_history(run["id"], name))


def _checkpoints() -> dict[str, dict[str, list[Any]]]:
    """The weights in the newest run's checkpoints."""
    client, run_id = connect(find_store()), runs(find_store())[0]["id"]
    paths = {name: client.download_artifacts(run_id, f"checkpoints/{name}") for name in ("best.ckpt", "last.ckpt")}
    read = {name: torch.load(path, weights_only=True)["state_dict"] for name, path in paths.items()}
    return {name: {key: value.tolist() for key, value in state.items()} for name, state in read.items()}


class Interrupt(Callback):
    """Simulates a signal after a step."""

    def __init__(self, watch: SignalWatch, step: int) -> None:
        self.watch, self.step = watch, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.watch.received = signal.SIGTERM


class StoreLost(Callback):
    """Locks the store at the beginning of training, so that nobody can read it."""

    database: sqlite3.Connection

    def on_train_start(self, *args: Any) -> None:
        path = find_store().uri.removeprefix("sqlite:///")
        self.database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self.database.execute("BEGIN EXCLUSIVE")


@pytest.mark.filterwarnings("ignore")  # as on the command line
def test_a_resumed_run_is_described_although_its_store_is_locked(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.tracking.run.PATIENCE", 1.0)  # seconds that a run's end waits for the store
    flags = [*FIT, "--trainer.log_every_n_steps", "1", "--tracking.figures", "false"]
    with SignalWatch() as watch, pytest.raises(Interrupted):
        fit(flags, [Interrupt(watch, 4)], watch)
    (folder,) = run_folders(find_store().home)
    journal = Journal(folder)
    before = journal.path.stat().st_size
    lost = StoreLost()
    assert fit(["--resume", folder.name, "--trainer.max_epochs", "1"], [lost]) is not None
    lost.database.close()
    entries = [entry for _, entry in journal.entries(before)]
    tags = {name for entry in entries if entry["kind"] == "tags" for name in entry["values"]}
    assert {"version.torch", "device", "git.dirty", "dataset.digest"} <= tags
    assert any(entry.get("path") == "packages.txt" for entry in entries)
    assert any(entry["kind"] == "dataset" for entry in entries)


def test_a_server_outage_stops_no_training_and_loses_no_point(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    flags = [*FIT, "--trainer.log_every_n_steps", "1"]
    try:
        fit(flags)
        whole = _points()
        for action, undo in ((server.hang, server.resume), (server.kill, server.start)):
            trouble = ServerTrouble(action)
            assert fit(flags, [trouble]) is not None  # although nobody answers until `undo`
            undo()
            for _ in range(2):
                assert main(["sync"]) == 0
            assert _points() == whole
    finally:
        server.kill()


class SlowStore(Callback):
    """After each step, sends one entry of the journal and reads the checkpoints that are in the store then."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, float, int, float]] = []
        """Step and best score in the store's best checkpoint, and the same in its last checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        (run,) = (each.run for each in trainer.loggers if isinstance(each, MLflowTracker))
        for end, _ in islice(run.journal.entries(run.journal.sent), 1):
            run.uploader.writer.send(lambda: True)
            run.journal.advance(end)
        folder = Path(run.locate("checkpoints"))
        if (folder / "last.ckpt").exists() and (folder / "best.ckpt").exists():
            pair: list[Any] = []
            for name in ("best.ckpt", "last.ckpt"):
                content = torch.load(folder / name, weights_only=True)
                (best,) = (state for key, state in content["callbacks"].items() if "ModelCheckpoint" in key)
                pair += [content["global_step"], float(best["best_model_score"] or 0)]
            self.pairs.append(tuple(pair))


def test_the_stores_best_checkpoint_is_never_older_than_the_last_one_needs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the upload is. With an older one, an exact resume would be impossible."""
    monkeypatch.setattr("lit_mnist.tracking.journal.uploader.SEND_INTERVAL", 600.0)
    store = SlowStore()
    flags = [*FIT, "--checkpoint.every_n_steps", "1", "--checkpoint.upload_every_n_minutes", "1e-9",
             "--trainer.log_every_n_steps", "8"]  # fmt: skip
    fit([*flags, "--trainer.max_epochs", "12", "--tracking.figures", "false"], [store])
    differing = [pair for pair in store.pairs if pair[1] != pair[3]]
    assert differing and all(best_step >= last_step for best_step, _, last_step, _ in differing), differing


@pytest.mark.root
def test_a_run_of_a_lost_machine_resumes_from_its_uploaded_checkpoint(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restarted job runs on another machine, which shares only the tracking server with the lost one."""
    server = Server(project)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    # With this learning rate the first epoch stays the best one: its checkpoint has to come from the server, too.
    flags = [*FIT, "--model.lr", "0.05", "--trainer.log_every_n_steps", "1", "--tracking.figures", "false",
             "--checkpoint.upload_every_n_minutes", "1e-6", "--threads", "1", "--key", "lost"]  # fmt: skip

    def train(machine: str, restarts: int, *command: str) -> subprocess.CompletedProcess[str]:
        (project / machine).mkdir()
        (project / machine / "pyproject.toml").touch()
        # The shell is process 1 of the namespace: a process 1 could not kill itself with SIGKILL.
        inside = [*CONTAINER, "sh", "-c", f'hostname {machine}; "$@"; exit $?', "sh"]
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "lost", "SLURM_RESTART_COUNT": str(restarts)}
        return subprocess.run([*inside, sys.executable, *command], cwd=project / machine,
                              env={**os.environ, **job}, capture_output=True, text=True, timeout=600)  # fmt: skip

    try:
        fit(flags[:-2])
        whole = _points(), _checkpoints()
        train("first", 0, "-c", DIES_AT_STEP_45, *flags)
        (lost, _) = runs(find_store())
        assert lost["status"] == "RUNNING"
        shutil.rmtree(project / "first")
        done = train("second", 1, "-m", "lit_mnist.cli", "fit", *flags)
        assert done.returncode == 0 and f"run {lost['id']} " in done.stdout, done.stdout + done.stderr
        assert "goes on from step 40" in done.stdout and len(runs(find_store())) == 2
        assert (_points(), _checkpoints()) == whole
    finally:
        server.kill()
