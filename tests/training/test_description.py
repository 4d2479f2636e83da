"""Descriptions in MLflow's UI: of a fit's run, and of the experiment of a packaged configuration."""

import shlex
import subprocess
import sys

import pytest
from conftest import SHORT, Cli

from lit_mnist.tracking.descriptions import code, escape, join, table
from lit_mnist.tracking.mlflow_private import DESCRIPTION, MAX_NOTE_LENGTH
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.config_files import config_names
from lit_mnist.training.description import command_tag, config_description

TINY = ("--config", "zhang/cnn", *SHORT, "--model.channels", "[2,4]", "--trainer.enable_progress_bar", "false")


def test_a_runs_description_has_its_command_its_best_value_and_how_to_resume(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["fit", *TINY, "--tracking.name", "postgresql://me:secret@host/x"]
    monkeypatch.setattr(sys, "argv", ["lit-mnist", *arguments])
    code, out, err = cli(*arguments)
    assert code == 0, err
    client = connect(find_store())
    experiment = client.get_experiment_by_name("zhang/cnn")
    run = client.search_runs([experiment.experiment_id])[0]
    description = run.data.tags[DESCRIPTION]
    page = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
    assert f"page: {page}?workflowType=machine_learning" in out
    assert description.startswith(f"best/val/acc **{run.data.metrics['best/val/acc']:.4f}**")
    assert (
        "\n    lit-mnist fit --config zhang/cnn --data MiniMNISTDataModule" in description
        and "'[2,4]'" in description
    )
    assert f"\n    lit-mnist fit --resume {run.info.run_id}\n" in description
    assert f"](get-artifact?path=figures%2Fval_confusion_matrix.png&run_uuid={run.info.run_id})" in description
    assert "secret" not in description and "secret" not in run.data.tags["command"]
    assert (
        "figure 4" in experiment.tags[DESCRIPTION]
        and "    lit-mnist fit --config zhang/cnn" in experiment.tags[DESCRIPTION]
    )

    client.set_experiment_tag(experiment.experiment_id, DESCRIPTION, "by hand")
    code, _, err = cli("fit", "--resume", run.info.run_id, "--trainer.max_epochs", "2")
    assert code == 0, err
    again = client.get_run(run.info.run_id).data
    assert again.tags[DESCRIPTION].startswith(f"best/val/acc **{again.metrics['best/val/acc']:.4f}**")
    assert "lit-mnist fit --config zhang/cnn" in again.tags[DESCRIPTION]
    assert client.get_experiment(experiment.experiment_id).tags[DESCRIPTION] == "by hand"


def test_a_trials_command_leaves_out_the_tracking_flags() -> None:
    tracking = ["--tracking.name=a", "--tracking.experiment", "sweeps/x"]
    arguments = ["--config", "zhang/cnn", *tracking, "--model.lr", "1"]
    assert command_tag(arguments, {"sweep.trial": "3"}) == {
        "command": "lit-mnist fit --config zhang/cnn --model.lr 1"
    }
    assert "--tracking.name=a" in command_tag(arguments, {})["command"]


def test_the_description_of_every_packaged_configuration_has_its_command() -> None:
    for name in config_names():
        assert f"    lit-mnist fit --config {name}" in config_description(name), name


def test_markdown_is_escaped_and_within_mlflows_limit() -> None:
    assert escape("a|b *c* [d](e) <f>\n`g`") == r"a\|b \*c\* \[d\]\(e\) \<f\> \`g\`"
    assert table(["a", "b"], [["1", "2"]]) == "| a&emsp; | b&emsp; |\n| :--- | :--- |\n| 1&emsp; | 2&emsp; |"
    assert join(["first", "x" * MAX_NOTE_LENGTH, "", "last"]) == "first\n\nlast"


def test_the_shell_reads_the_lines_of_a_long_command_as_one_command() -> None:
    words = ["lit-mnist", "fit", "--config", "zhang/cnn", "--tracking.name", "a --b 'c'", "--model.hidden_sizes"]
    words += ["[300, 100]", *(f"--data.noise={i}" for i in range(12))]
    shown = code(shlex.join(words))
    lines = shown.splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 104 and all(line.startswith("    ") for line in lines)
    read = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {shown.strip()}"], capture_output=True, text=True, check=True
    )
    assert read.stdout.splitlines() == words
    assert code("lit-mnist sweep best a") == "    lit-mnist sweep best a"
