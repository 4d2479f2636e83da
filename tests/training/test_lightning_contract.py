"""The private names of Lightning (and torch) that this project uses exist, and are used in one package only.

When an upgrade makes one of these tests fail, look at what replaced the name, adapt lit_mnist/training/lightning,
compare the fast step with Lightning's own (test_fast_step.py), and add the version to TRIED_VERSIONS.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import multiprocessing, subprocess_script
from lightning.pytorch.trainer.connectors import signal_connector
from torch.optim import optimizer as torch_optimizer

import lit_mnist
from lit_mnist.training.lightning.fast_step import TRIED_VERSIONS

ROOT = Path(lit_mnist.__file__).parent
ADAPTER = ROOT / "training" / "lightning"


def _trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def _schedule() -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(_optimizer(), lambda step: 1.0)


USED: dict[str, Any] = {
    # name: where it has to exist
    "_AutomaticOptimization": lambda: importlib.import_module(_AutomaticOptimization.__module__),
    "_skip_backward": lambda: _AutomaticOptimization(_trainer()),
    "_make_backward_fn": lambda: _AutomaticOptimization,
    "_make_zero_grad_fn": lambda: _AutomaticOptimization,
    "_optimizer_step": lambda: _AutomaticOptimization,
    "_current_fx_name": LightningModule,
    "_detect_anomaly": _trainer,
    "_signal_connector": _trainer,
    "_SignalConnector": lambda: signal_connector,
    "_MultiProcessingLauncher": lambda: multiprocessing,
    "_batches_that_stepped": lambda: _trainer().fit_loop.epoch_loop,
    "_last_lr": _schedule,
    "_optimizer_step_pre_hooks": _optimizer,
    "_global_optimizer_pre_hooks": lambda: torch_optimizer,
}
REPLACED = {
    # Public names that are overridden or replaced, which has no effect if Lightning no longer calls them.
    "run": lambda: _AutomaticOptimization,
    "register_signal_handlers": lambda: signal_connector._SignalConnector,
    "automatic_optimization": lambda: _trainer().fit_loop.epoch_loop,
    "setup_distributed": lambda: DDPStrategy,
    "procs": lambda: subprocess_script._SubprocessScriptLauncher(_trainer().strategy, 1, 1),
}


@pytest.mark.filterwarnings("ignore:The `srun` command")
@pytest.mark.parametrize("name", [*USED, *REPLACED])
def test_a_name_that_is_used_exists(name: str) -> None:
    owner = {**USED, **REPLACED}[name]()
    shown = owner.__name__ if inspect.isclass(owner) or inspect.ismodule(owner) else type(owner).__name__
    assert hasattr(owner, name), (
        f"{shown} has no {name} in Lightning {lightning.__version__}, torch {torch.__version__}:"
        f" tried were Lightning {', '.join(TRIED_VERSIONS)}"
    )


@pytest.mark.filterwarnings("ignore:The `srun` command")
def test_callback_metrics_is_the_dictionary_that_callbacks_read() -> None:
    trainer = _trainer()
    trainer.callback_metrics["train/loss"] = torch.tensor(0.5)
    assert trainer.callback_metrics["train/loss"] == 0.5, (
        f"in Lightning {lightning.__version__}, Trainer.callback_metrics is a copy: LitModel._log has no effect"
    )


def _private_names(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Names with a leading underscore that are imported from Lightning or read; True for attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("lightning", "torch")):
            yield from ((part, False) for part in (node.module or "").split(".") if re.match("_[^_]", part))
            yield from ((alias.name, False) for alias in node.names if re.match("_[^_]", alias.name))
        elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            owner = node.value
            if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super":
                yield node.attr, True
            else:
                yield node.attr, isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def _names_of_lightning() -> set[str]:
    """Every attribute with a leading underscore that Lightning's source uses on `self`, or defines as a method."""
    names: set[str] = set()
    packages = "callbacks", "loops", "trainer", "core", "loggers", "strategies", "plugins", "profilers", "cli"
    for package in packages:
        module = importlib.import_module(f"lightning.pytorch.{package}")
        files = [Path(str(module.__file__))]
        if hasattr(module, "__path__"):
            files = [path for folder in module.__path__ for path in Path(folder).rglob("*.py")]
        for path in files:
            text = path.read_text()
            names |= set(re.findall(r"\bself\.(_[a-z]\w*)", text)) | set(
                re.findall(r"\bdef (_[a-z]\w*)\(self", text)
            )
    return names


def test_private_names_of_lightning_are_used_in_the_adapter_only() -> None:
    theirs = _names_of_lightning()
    assert {"_duration", "_trainer", "_ddp_kwargs", "_callback_metrics"} <= theirs
    wrong = []
    for path in ROOT.rglob("*.py"):
        if path.is_relative_to(ADAPTER):
            continue
        tree = ast.parse(path.read_text())
        uses_lightning = "lightning" in path.read_text()
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assigned = {
            target.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
            for target in ast.walk(node)
            if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store)
        }
        for name, is_own in _private_names(tree):
            if uses_lightning and name in theirs and not (is_own and name in defined | assigned):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def test_every_private_name_in_the_adapter_is_in_the_contract() -> None:
    found: set[str] = set()
    for module in pkgutil.iter_modules([str(ADAPTER)]):
        tree = ast.parse((ADAPTER / f"{module.name}.py").read_text())
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        own |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name) and node.value.id == "self"
        }  # fmt: skip
        found |= {name for name, _ in _private_names(tree)} - own - {"_exit"}
    assert found == set(USED)
