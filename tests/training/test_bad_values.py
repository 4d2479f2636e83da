"""Bad values give a one-line error, most of them before a run is created."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHORT, Cli
from mlflow.exceptions import MlflowException

from lit_mnist.errors import UsageError
from lit_mnist.guard import guarded
from lit_mnist.tracking.run import open_run

FIT = ("fit", "--model", "MLP", *SHORT, "--trainer.max_steps", "2", "--tracking.system_metrics", "false",
       "--tracking.figures", "false")  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--trainer.devices -1", "--trainer: `devices`"),
        ("--trainer.devices 3", "--data.batch_size 64 cannot be shared equally by 3 devices"),
        ("--trainer.num_nodes 2", "--trainer.num_nodes 2: nothing has started the other nodes"),
        ("--trainer.accumulate_grad_batches 0", "--trainer.accumulate_grad_batches 0 must be at least 1"),
        ("--seed_everything -1", "--seed_everything -1: take"),
        ("--seed_everything 4294967296", "--seed_everything 4294967296: take"),
        ("--seed_everything false", "--seed_everything false: take"),
        ("--threads 9223372036854775808", "--threads 9223372036854775808: take"),
        ("--threads -2", "--threads -2: take"),
        ("--model.lr 1e400", "--model.lr inf must be finite"),
        ("--trainer.logger CSVLogger", "--trainer.logger has no effect"),
        ("--trainer.devices 1000000000000000", "--trainer: MemoryError (`lit-mnist --debug ...`"),
        ("--model Autoencoder", "--model Autoencoder is a base class, which does nothing by itself; did you mean"),
        ("--model EncoderClassifier", "--model EncoderClassifier is a base class"),
        ("--data ImageDataModule", "--data ImageDataModule is a base class"),
        ("--model.warmup_steps null", "--model.warmup_steps: expected int, not null"),
        ("--model.hidden_sizes [1000000000000000]", "model or data: [enforce fail"),
    ],
)
def test_a_bad_value_is_refused_before_there_is_a_run(cli: Cli, flags: str, line: str) -> None:
    code, out, err = cli(*FIT, *flags.split())
    assert (code, out) == (2, "") and err.startswith(f"lit-mnist: error: {line}") and err.count("\n") == 1


def test_a_key_that_a_flag_gives_twice_is_refused(cli: Cli) -> None:
    code, out, err = cli(*FIT, "--model", "{class_path: MLP, class_path: CNN}")
    assert (code, out) == (2, "") and "class_path is given twice" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OSError("no such disk"), MlflowException("no such table"), UsageError("no such flag")]
)
def test_debug_adds_the_traceback_to_any_error(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert guarded(fail) in (1, 2)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and ("--debug" in line) == (not isinstance(error, UsageError))
    guarded(fail, debug=True)
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback") and errors.endswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is empty"),
        ("trainer:\n", "trainer is None"),
        ("trainer: [1]\n", "trainer is [1]"),
        ("data:\n  init_args:\n    seed: 1\n    seed: 2\n", ", line 4: seed is given twice, first in line 3"),
    ],
)  # fmt: skip
def test_a_bad_config_is_refused_before_there_is_a_run(cli: Cli, project: Path, text: str, line: str) -> None:
    (project / "bad.yaml").write_text(text)
    code, out, err = cli(*FIT, "--config", "bad.yaml")
    assert (code, out) == (2, "") and line in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    ["--trainer.val_check_interval 5000", "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor nope"],
)
def test_an_error_of_lightning_is_one_line_and_debug_adds_the_traceback(cli: Cli, flags: str) -> None:
    code, _, err = cli("--debug", *FIT, *flags.split())
    assert code == 2 and "Traceback" in err and "--debug" in err.splitlines()[-1]
    code, _, err = cli(*FIT, *flags.split())
    assert code == 2 and "Traceback" not in err


def test_a_run_without_a_configuration_is_not_resumed(cli: Cli, project: Path) -> None:
    with open_run("by hand", system_metrics=False) as run:
        (run.folder / "by hand" / "checkpoints").mkdir(parents=True)
    code, out, err = cli("fit", "--resume", run.id)
    assert (code, out) == (1, "") and f"run {run.id} has no config.yaml" in err and err.count("\n") == 1


def test_srun_on_the_path_gives_no_warning(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "srun").write_text("#!/bin/sh\n")
    (project / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(project), prepend=os.pathsep)
    assert cli(*FIT)[0] == 0  # warnings are errors in this suite


def test_closed_standard_streams_are_no_error(project: Path) -> None:
    line = " ".join([sys.executable, "-m", "lit_mnist.cli", *FIT, ">&-", "2>&-"])
    assert subprocess.run(["sh", "-c", line], check=False, timeout=120).returncode == 0
