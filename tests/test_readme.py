"""Every command of the README runs as it is written, but shorter."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from PIL import Image

from lit_mnist.cli import COMMANDS
from lit_mnist.data.mini import load_mini
from lit_mnist.tracking.store import connect, find_store

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
SHORTER = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]


def commands(program: str) -> list[list[str]]:
    split = [shlex.split(line, comments=True) for line in LINES]
    return [words for words in split if words and words[0] == program]


@pytest.fixture
def run_id(cli: Cli) -> str:
    code, out, err = cli("fit", "--config", "zhang/cnn", "--trainer.max_steps", "20")
    assert code == 0, err
    return out.split()[1]


def test_no_figure_of_the_readme_is_left_open() -> None:
    assert not re.findall(r"\{[A-Z_]+\}", README)


def test_the_readme_shows_the_commands() -> None:
    assert {words[1] for words in commands("lit-mnist")} == set(COMMANDS)
    assert {words[1] for words in commands("make")} == {"demo", "test", "bench", "check", "soak"}


def test_every_command_of_the_readme_runs(cli: Cli, project: Path, full_data: str, run_id: str) -> None:
    Image.fromarray(load_mini()[2][0]).save(project / "digit.png")
    (project / "sweeps").symlink_to(ROOT / "sweeps")
    for _, *words in commands("lit-mnist"):
        if words[0] == "ui":  # runs until it is interrupted; test_ui.py has it
            continue
        words = [run_id if word in ("RUN_ID", "last") else word for word in words]
        shorter = SHORTER if words[0] == "fit" else ["--trials", "2"] if "--workers" in words else []
        code, _, err = cli(*words, *shorter)
        assert code == 0, (words, err)


@pytest.mark.parametrize("target", [words[1] for words in commands("make")])
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_python_of_the_readme_leaves_a_run_that_is_tested_and_resumed(
    project: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = (text for kind, text in BLOCKS if kind == "python")
    names: dict[str, Any] = {}
    exec(source, names)
    capsys.readouterr()
    run = names["run"]
    assert {path.name for path in run.folder.rglob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    code, out, err = cli("test", "--run", run.id)
    assert (code, err) == (0, "") and "test/mse" in out
    steps = names["trainer"].global_step
    code, out, err = cli("fit", "--resume", run.id, "--trainer.max_epochs", "4")
    assert (code, err) == (0, "") and f"goes on from step {steps}" in out
    losses = connect(find_store()).get_metric_history(run.id, "train/loss")
    assert max(point.step for point in losses) == steps // 3 * 4
