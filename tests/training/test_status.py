"""A run that is interrupted or fails: its status, its exit code, and what is saved."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import SHORT, Cli, enter_project

from lit_mnist.tracking.run import Run, open_run

EVERY_STEP = ("--config", "zhang/cnn", *SHORT, "--trainer.log_every_n_steps", "1")
ENDLESS = ["fit", *EVERY_STEP, "--trainer.max_epochs", "100000", "--trainer.check_val_every_n_epoch", "50"]
COMMAND = [sys.executable, "-m", "lit_mnist.cli", *ENDLESS]
SLOW = f"""
import sys, time
from lightning.pytorch import Callback
from lit_mnist.terminal import quiet
from lit_mnist.guard import guarded
from lit_mnist.training.fit import fit

class Slow(Callback):
    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == 2:
            print("epoch 0, asleep", flush=True)
            time.sleep(600)

quiet()
sys.exit(guarded(lambda: fit({ENDLESS[1:]!r}, [Slow()])))
"""
TIMEOUT = 150


@dataclass
class Fit:
    """A process in the middle of its training."""

    process: "subprocess.Popen[str]"
    run_id: str

    def end(self) -> tuple[int, str]:
        """Wait for the end of the process; returns its exit code and errors."""
        return self.process.wait(TIMEOUT), self.process.communicate()[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    """A project shared by these tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_project(tmp_path_factory.mktemp("status"), patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="module")
def fits(project: Path):
    """Processes in mid-training, which are started together, since each needs some time to begin."""
    commands = dict.fromkeys(("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"), COMMAND) | {
        "slow": [sys.executable, "-c", SLOW]
    }
    processes = {
        name: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }
    watchdogs = [threading.Timer(TIMEOUT, process.kill) for process in processes.values()]
    for watchdog in watchdogs:
        watchdog.start()
    yield {name: _in_training(process) for name, process in processes.items()}
    for watchdog, process in zip(watchdogs, processes.values(), strict=True):
        watchdog.cancel()
        process.kill()
        process.communicate()


def _in_training(process: "subprocess.Popen[str]") -> Fit:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch "):
            return Fit(process, lines[0].split()[1])
    pytest.fail(f"{process.args} did not begin to train: {lines} {process.stderr.read()}")


def _saved_state(run: Run) -> tuple[str, list[int], dict[str, object]]:
    """Status, steps of the training loss, and the last checkpoint."""
    file = run.client.download_artifacts(run.id, "checkpoints/last.ckpt")
    assert (run.folder / "checkpoints" / "last.ckpt").read_bytes() == Path(file).read_bytes()
    steps = [step for step, _ in run.history("train/loss")]
    return run.data().info.status, steps, torch.load(file, weights_only=True)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 75), ("SIGUSR2", 75)])
def test_a_signal_ends_the_run_after_the_step_in_flight(name: str, code: int, fits: dict[str, Fit]) -> None:
    fits[name].process.send_signal(getattr(signal, name))
    assert fits[name].end() == (code, f"lit-mnist: stopped by {name}\n")
    with open_run("", run_id=fits[name].run_id) as run:
        status, steps, last = _saved_state(run)
    assert status == "KILLED" and last["global_step"] > 0
    assert steps == list(range(1, last["global_step"] + 1))


def test_a_second_signal_changes_nothing_and_a_third_ends_at_once(fits: dict[str, Fit]) -> None:
    process = fits["slow"].process
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert fits["slow"].end() == (143, "")


def test_a_diverged_training_names_the_step_and_keeps_its_metrics(cli: Cli) -> None:
    code, out, err = cli("fit", *EVERY_STEP, "--model.optimizer", "sgd", "--model.lr", "1e30")
    assert code == 1 and err.startswith("lit-mnist: error: train/loss is ") and err.count("\n") == 1
    assert "training has diverged; a lower --model.lr" in err
    with open_run("", run_id=out.split()[1]) as run:
        status, steps = run.data().info.status, [step for step, _ in run.history("train/loss")]
        assert run.data().data.tags["error"] in f"UserError: {err.removeprefix('lit-mnist: error: ')}"
    assert status == "FAILED" and steps == list(range(1, int(err.partition("at step ")[2].split()[0])))


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--data", "MNISTDataModule", "--data.root", "nowhere"), 1),
        (("--data.train_per_class", "100000"), 2),
        (("--data.batch_size", "0"), 2),
        (("--trainer.precision", "17"), 2),
        (("--trainer.devices", "0"), 2),
        (("--trainer.accelerator", "abacus"), 2),
        (("--model.kernel_size", "4"), 2),
        (("--model.num_classes", "5"), 2),
        (("--model.image_shape", "[1,14,14]"), 2),
        (("--trainer.logger", "true"), 2),
    ],
)
def test_a_fit_that_cannot_start_is_a_one_line_error_without_a_run(
    flags: tuple[str, ...], code: int, cli: Cli
) -> None:
    before = {run["id"] for run in json.loads(cli("runs", "--json", "--limit", "99")[1])}
    exit_code, out, err = cli("fit", *EVERY_STEP, *flags)
    assert (exit_code, out) == (code, "") and err.startswith("lit-mnist: error: ") and err.count("\n") == 1
    assert {run["id"] for run in json.loads(cli("runs", "--json", "--limit", "99")[1])} == before


@pytest.mark.parametrize("command", [ENDLESS, ["sweep", "none.yaml"]])
def test_a_warning_signal_during_the_start_ends_the_command_for_a_requeue(
    command: list[str], project: Path
) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "lit_mnist.cli", *command]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # This line comes in the middle of torch's import, which takes longer than all imports before it.
        assert next((line for line in process.stderr if "torch._C" in line), None)
        process.send_signal(signal.SIGUSR1)
        errors = process.stderr.read()
    assert process.returncode == 75 and "lit-mnist: stopped by SIGUSR1" in errors
    assert "lit_mnist.training.fit\n" not in errors
