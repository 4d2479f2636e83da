"""The commands of README.md and docs/ are valid, and those that take seconds run as they are written.

A block of commands that needs a server, full data or minutes has a comment on the line before it, such as
`<!-- not run: needs SLURM -->`. The arguments of its commands are checked, but they are not run.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from PIL import Image

from lit_mnist.cli import COMMANDS
from lit_mnist.data.mini import load_mini
from lit_mnist.tracking.store import connect, find_store

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text() for page in FILES}
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\n+)?```(?P<kind>bash|python)\n(?P<text>.*?)```", re.DOTALL
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LONG = ("reproduce", "data")
"""Commands that are not called to check their arguments, since they train or download."""
MINI = ["--data", "MiniMNISTDataModule", "--data.train_size", "null", "--data.train_per_class", "40"]
SHORTER = {
    "fit": [*MINI, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"],
    "sweep": ["--trials", "2"],
}
"""Flags that shorten a command."""


def _commands(page: str, run: bool | None = None) -> list[list[str]]:
    """The commands in a page's bash blocks, split into words; `run` selects blocks to run or not to run."""
    lines = [
        line
        for block in BLOCK.finditer(PAGES[page])
        if block["kind"] == "bash" and run in (None, block["reason"] is None)
        for line in block["text"].replace("\\\n", " ").splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_valid(page: str, cli: Cli, project: Path) -> None:
    """In an empty project a command may fail because there is no run, but not because of its arguments."""
    assert not re.findall(r"\{[A-Z_]+\}", PAGES[page]), "a placeholder has no value"
    for program, *words in _commands(page):
        if program == "make":
            assert {word for word in words if "=" not in word} <= TARGETS, words
        if program != "lit-mnist":
            continue
        words = words[words[0] == "--debug" :]
        assert words[0] in (*COMMANDS, "--help", "--version"), words
        if words[0] == "fit":
            # LightningCLI prints the configuration that results from the flags, and trains nothing.
            if "--resume" in words:
                at = words.index("--resume")
                words[at : at + 2] = ["--config", "zhang/cnn"]
            flags = [word for word in words if word not in ("--offline", "--help.fields")]
            flags = [
                "zhang/cnn" if word.startswith("mine/") else word for word in flags
            ]  # a configuration that docs/extending.md shows
            with pytest.raises(SystemExit) as end:
                cli(*flags, "--print_config")
            assert not end.value.code, words
        elif words[0] in ("submit", "ui"):
            harmless = "--dry-run" if words[0] == "submit" else "--print-links"
            assert "--help`" not in cli(words[0], harmless, *words[1:])[2], words
        elif words[0] in LONG or words[1:2] == ["sweeps/demo.yaml"]:
            continue
        else:
            assert "--help`" not in cli(*words)[2], words


def test_the_pages_show_every_command() -> None:
    shown = {words[1] for page in PAGES for words in _commands(page) if words[0] == "lit-mnist"}
    assert set(COMMANDS) - {"submit", "jobs"} <= shown


def test_documented_commands_that_take_seconds_run(cli: Cli, project: Path) -> None:
    Image.fromarray(load_mini()[2][0]).save(project / "digit.png")
    (project / "sweeps").symlink_to(ROOT / "sweeps")
    ids, seen = list[str](), set()
    for page in PAGES:
        for program, *words in _commands(page, run=True):
            # `ui` runs until it is interrupted: test_ui.py tests it.
            if program != "lit-mnist" or words[0] == "ui" or tuple(words) in seen:
                continue
            seen.add(tuple(words))
            shorter = SHORTER.get(words[0], []) if words[0] == "fit" or "--workers" in words else []
            # The first id in a command stands for the first run, the second id for the newest run.
            chosen = iter([*ids[:1], *ids[-1:]])
            words = [next(chosen) if word in ("RUN_ID", "last") else word for word in words]
            code, out, err = cli(*words, *shorter)
            assert code == 0, (page, words, err)
            if words[0] == "fit" and "--resume" not in words:
                ids.append(out.split()[1])


def test_the_run_of_the_readmes_python_code_can_be_tested_and_resumed(
    project: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = (block["text"] for block in BLOCK.finditer(PAGES["README.md"]) if block["kind"] == "python")
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
    losses = connect(find_store()).get_metric_history(run.id, "train/loss_epoch")
    assert max(point.step for point in losses) == steps // 3 * 4
