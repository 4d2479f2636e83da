"""Processes receive signals at random moments: after its resumes, the run equals the undisturbed one.

Each signal is sent once here, and LIT_MNIST_SOAK times by `make soak`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import MINI, enter_project

from lit_mnist.tracking.queries.listing import runs
from lit_mnist.tracking.store import connect, find_store

SIGNALS = int(os.environ.get("LIT_MNIST_SOAK", "1"))
SEED = int(os.environ.get("LIT_MNIST_SOAK_SEED", str(random.randrange(10**6))))
FIT = ["--config", "zhang/cnn", *MINI, "--model.channels", "[4,8]", "--model.dropout", "0.3",
       "--model.optimizer", "sgd", "--model.momentum", "0.9", "--model.lr", "0.02",
       "--model.lr_schedule", "cosine", "--model.warmup_steps", "20",
       "--data.train_per_class", "100", "--data.batch_size", "10", "--data.corruption", "gaussian",
       "--data.noise", "0.3", "--data.rotation", "10", "--trainer.max_epochs", "6",
       "--trainer.log_every_n_steps", "7", "--checkpoint.every_n_steps", "60",
       "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss",
       "--trainer.callbacks.patience", "4"]  # fmt: skip
TIMEOUT = 240
TIMED = ("images_per_s", "system/")  # metrics that differ from run to run


@dataclass
class RunContent:
    """What is stored of a run: its points, its status, and its checkpoints' weights and optimiser state."""

    points: dict[tuple[str, int], float]
    tensors: list[torch.Tensor]
    status: str

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, RunContent)
        return (
            self.points == other.points
            and self.status == other.status
            and len(self.tensors) == len(other.tensors)
            and all(torch.equal(a, b) for a, b in zip(self.tensors, other.tensors, strict=True))
        )


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "lit_mnist.cli", "fit", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def finish(*arguments: str) -> str:
    process = start(*arguments)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return out + err


def run_content() -> RunContent:
    """The content of this project's only run."""
    client = connect(find_store())
    (run,) = runs(find_store())
    points: dict[tuple[str, int], float] = {}
    for name in run["metrics"]:
        if not name.startswith(TIMED):
            for point in client.get_metric_history(run["id"], name):
                assert (name, point.step) not in points, f"{name} has two points at step {point.step}"
                points[name, point.step] = point.value
    tensors = []
    for name in ("last", "best"):
        path = client.download_artifacts(run["id"], f"checkpoints/{name}.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        tensors += checkpoint["state_dict"].values()
        states = checkpoint["optimizer_states"][0]["state"].values()
        tensors += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return RunContent(points, tensors, run["status"])


def send_signal(
    process: "subprocess.Popen[str]", number: int, seconds: float, in_training: bool
) -> tuple[bool, str]:
    """Send the signal after some seconds; returns True if the process ended by itself, and how it ended."""
    if in_training:
        assert process.stdout is not None
        process.stdout.readline()  # the run exists: training is about to start
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    assert "Traceback" not in err, err
    return process.returncode == 0, f"exit code {process.returncode}: {err.strip()}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunContent, float]:
    """The content of an undisturbed run, and the seconds it trains."""
    with pytest.MonkeyPatch.context() as patch:
        enter_project(tmp_path_factory.mktemp("soak") / "whole", patch)
        process = start(*FIT)
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
        return run_content(), time.monotonic() - began


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_run_killed_at_random_moments_equals_the_undisturbed_run(
    name: str, undisturbed: tuple[RunContent, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seconds = undisturbed
    rng = random.Random(f"{SEED} {name}")
    print(f"seed {SEED}: LIT_MNIST_SOAK_SEED={SEED} does the same again")
    signals, projects = 0, 0
    while signals < SIGNALS:
        projects += 1
        enter_project(tmp_path / str(projects), monkeypatch)
        ended = False
        while not ended and signals < SIGNALS:
            existing = runs(find_store())
            process = start(*(["--resume", existing[0]["id"]] if existing else FIT))
            # At any moment of start-up or training; training takes about two thirds of the time after it.
            in_training = signals == 0 or rng.random() < 0.75
            ended, how = send_signal(process, getattr(signal, name), rng.uniform(0, 0.7 * seconds), in_training)
            print(f"{name} {signals}: {how}")
            signals += not ended
        existing = runs(find_store())
        if not ended or existing[0]["status"] != "FINISHED":
            finish(*(["--resume", existing[0]["id"]] if existing else FIT))
        assert run_content() == whole, f"seed {SEED}, {name}"


@pytest.mark.parametrize("damage", ["bit flipped", "tail cut off"])
def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(
    damage: str, undisturbed: tuple[RunContent, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = undisturbed
    enter_project(tmp_path / "damaged", monkeypatch)
    process = start(*FIT)
    assert process.stdout is not None
    run_id = process.stdout.readline().split()[1]
    checkpoints = Path("mlruns") / "runs" / run_id / "checkpoints"
    while not (checkpoints / "previous.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    newest = checkpoints / "last.ckpt"
    raw = bytearray(newest.read_bytes())
    if damage == "bit flipped":
        raw[random.Random(SEED).randrange(1000, len(raw) - 1000)] ^= 16
        newest.write_bytes(raw)
    else:
        newest.write_bytes(raw[:-3000])
    printed = finish("--resume", "last")
    assert damage == "bit flipped" or f"{newest.name} does not fit this model or is damaged" in printed
    assert run_content() == whole, f"seed {SEED}"
