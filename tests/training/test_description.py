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


def test_a_runs_page_says_how_it_was_made_what_it_reached_and_how_it_goes_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["fit", *TINY, "--tracking.name", "postgresql://me:secret@host/x"]
    monkeypatch.setattr(sys, "argv", ["lit-mnist", *arguments])
    code, out, err = cli(*arguments)
    assert code == 0, err
    client = connect(find_store())
    experiment = client.get_experiment_by_name("zhang/cnn")
    run = client.search_runs([experiment.experiment_id])[0]
    said = run.data.tags[DESCRIPTION]
    page = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
    assert f"page: {page}?workflowType=machine_learning" in out
    assert said.startswith(f"best/val/acc **{run.data.metrics['best/val/acc']:.4f}**")
    assert "\n    lit-mnist fit --config zhang/cnn --data MiniMNISTDataModule" in said and "'[2,4]'" in said
    assert f"\n    lit-mnist fit --resume {run.info.run_id}\n" in said
    assert f"](get-artifact?path=figures%2Fval_confusion_matrix.png&run_uuid={run.info.run_id})" in said
    assert "secret" not in said and "secret" not in run.data.tags["command"]
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


def test_a_trials_command_leaves_out_where_it_is_tracked() -> None:
    arguments = [
        "--config",
        "zhang/cnn",
        "--tracking.name=a",
        "--tracking.experiment",
        "sweeps/x",
        "--model.lr",
        "1",
    ]
    assert command_tag(arguments, {"sweep.trial": "3"}) == {
        "command": "lit-mnist fit --config zhang/cnn --model.lr 1"
    }
    assert "--tracking.name=a" in command_tag(arguments, {})["command"]


def test_every_packaged_configuration_describes_its_paper_and_its_command() -> None:
    for name in config_names():
        assert f"    lit-mnist fit --config {name}" in config_description(name), name


def test_markdown_shows_values_as_they_are_and_keeps_to_mlflows_limit() -> None:
    assert escape("a|b *c* [d](e) <f>\n`g`") == r"a\|b \*c\* \[d\]\(e\) \<f\> \`g\`"
    assert table(["a", "b"], [["1", "2"]]) == "| a&emsp; | b&emsp; |\n| :--- | :--- |\n| 1&emsp; | 2&emsp; |"
    assert join(["first", "x" * MAX_NOTE_LENGTH, "", "last"]) == "first\n\nlast"


def test_a_long_command_is_several_lines_that_the_shell_reads_as_one() -> None:
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
