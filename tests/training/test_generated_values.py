"""Generated values of flags and arguments give one-line errors, never a traceback."""

import contextlib
import io
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import MINI, enter_project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_mnist.cli import main
from lit_mnist.data import ImageDataModule
from lit_mnist.models import LitModel
from lit_mnist.training.config_errors import class_names, parameters, subclasses
from lit_mnist.training.configuration import LitCLI

pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = int(os.environ.get("LIT_MNIST_SOAK", 0)) * 20 or 60
FIT = (
    *("fit", "--offline", "--threads", "1", "--trainer.max_epochs", "1", "--trainer.max_steps", "2"),
    *("--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"),
    # No number of devices among the values divides this batch size, so that no processes are started.
    *(*MINI, "--data.train_size", "null", "--data.train_per_class", "10", "--data.batch_size", "37"),
    *("--tracking.system_metrics", "false", "--tracking.figures", "false"),
)
# No sizes of about 10,000: a layer of that size would fit into the memory, but it would be slow.
VALUES = [
    *("-1", "0", "1", "2", "1.5", "-0.5", "1e-3", "1e400", "nan", "-inf", "0x10", "1_000"),
    *("9" * 30, "-" + "9" * 30, str(2**31), str(2**63), str(10**15)),
    *(
        "",
        "null",
        "true",
        "[]",
        "[1,",
        "[0]",
        "[-1]",
        "[null]",
        "[[1]]",
        "{}",
        "{a: 1}",
        "{a: 1, a: 2}",
        "=",
        "*",
        "&a",
    ),
    *(
        "!!python/object:os.system",
        "{class_path: 3}",
        "[{class_path: x}]",
        "{class_path: MLP, init_args: {lr: x}}",
    ),
    *("x", "a b", "torch.nn.Linear", "builtins.int", "LitModel", "Autoencoder", "auto", "last", "EarlyStopping"),
    *(".", "/dev/null", "binary", "twice.yaml", "field.yaml", "gone.yaml"),
]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
VALUE = st.sampled_from(VALUES) | TEXT
OTHER_COMMANDS = [f"{command} {flag}" for command, flags in {
    "runs": ("--limit", "--sort", "--experiment", "--reap"),
    "compare": ("--study", "--html", ""),
    "sync": ("",),
    "test": ("--run", "--checkpoint", "--model.lr", ""),
    "validate --run ab": ("--checkpoint", "--data.root"),
    "predict": ("--run", "--out", ""),
    "predict --run ab": ("--checkpoint", "--out", ""),
    "sweep": ("--trials", "--workers", "--storage", ""),
    "sweep field.yaml": ("--trials", "--workers", "--plan", ""),
    "sweep status": ("--storage", ""),
    "sweep best name": ("--storage", "--out"),
    "sweep export": ("--out", ""),
    "sweep list": ("--storage",),
    "data verify": ("--root",),
    "data": ("",),
    "reproduce": ("--seeds", "--preset"),
    "reproduce zhang/gone": ("--seeds", "--preset", ""),
    "ui": ("",),
    "": ("",),
}.items() for flag in flags]  # fmt: skip
"""Other commands, with the flag or argument that gets the value."""


@cache
def _fit_flags() -> list[tuple[str, str]]:
    """Every flag of `fit`, as (model that has it, flag)."""
    parser = LitCLI(["--model", "MLP", *MINI]).parser
    flags = {option for action in parser._actions for option in action.option_strings if option[:2] == "--"}
    flags |= {"--resume", "--offline", "--model.class_path", "--model.init_args", "--model.dict_kwargs"}
    data = {name for cls in subclasses(ImageDataModule).values() for name in parameters(cls)}
    flags |= {f"--data.{name}" for name in data}
    models = {name: cls for name, cls in subclasses(LitModel).items() if name in class_names(LitModel)}
    fields = {(name, f"--model.{field}") for name, cls in models.items() for field in parameters(cls)}
    return sorted({("MLP", flag) for flag in flags} | fields)


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with files that are no configurations. The number of torch's threads is restored at the end."""
    folder, threads = tmp_path_factory.mktemp("values"), torch.get_num_threads()
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "twice.yaml").write_text("model: MLP\nmodel: CNN\n")
    (folder / "field.yaml").write_text("lr: 1\n")
    with pytest.MonkeyPatch.context() as patch:
        yield enter_project(folder, patch)
    torch.set_num_threads(threads)


def _run(arguments: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: object = main(arguments)
        except SystemExit as end:  # raised by `--model.help` and similar flags
            code = end.code
    lines = err.getvalue().splitlines()
    assert all(line.startswith("lit-mnist: ") for line in lines), err.getvalue()
    assert not code or lines[-1].startswith("lit-mnist: error: "), err.getvalue()


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_value_of_a_flag_of_fit_gives_no_traceback(data: st.DataObject) -> None:
    model, flag = data.draw(st.sampled_from(_fit_flags()))
    _run([*FIT, "--model", model, f"{flag}={data.draw(VALUE)}"])


@settings(max_examples=EXAMPLES // 2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(OTHER_COMMANDS), VALUE)
def test_a_value_of_an_argument_of_another_command_gives_no_traceback(command: str, value: str) -> None:
    *words, last = command.split(" ")
    _run([*(word for word in words if word), f"{last}={value}" if last else value])
