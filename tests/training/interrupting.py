"""Interrupt a training and resume it, in this process and without an MLflow run."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from conftest import MINI
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers.logger import Logger

from lit_mnist.errors import Interrupted
from lit_mnist.signals import SignalWatch
from lit_mnist.training.checkpoints.exact_resume import ExactResume
from lit_mnist.training.checkpoints.files import AtomicCheckpointIO, best_callback
from lit_mnist.training.checkpoints.resume_point import choose_checkpoint
from lit_mnist.training.configuration import CheckpointArgs, LitCLI

CNN = ["--config", "zhang/cnn", *MINI, "--model.channels", "[4,8]", "--model.dropout", "0.3",
       "--model.optimizer", "sgd", "--model.momentum", "0.9", "--model.lr", "0.05",
       "--model.lr_schedule", "cosine", "--model.warmup_steps", "3",
       "--data.train_per_class", "20", "--data.batch_size", "30", "--data.corruption", "gaussian",
       "--data.noise", "0.3", "--data.rotation", "10", "--data.shift", "2", "--data.flip", "true",
       "--trainer.max_epochs", "4", "--trainer.log_every_n_steps", "3",
       "--trainer.enable_progress_bar", "false"]  # fmt: skip
"""Flags of a training of 4 epochs of 7 steps, with dropout, noise and augmentation."""


class Recorder(Logger):
    """A logger that keeps every point, and fails if a name gets a second point at the same step."""

    name, version = "recorder", "0"

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[tuple[str, int], float] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            if name not in ("epoch", "images_per_s"):
                assert (name, step) not in self.points
                self.points[name, step] = value


class Signal(Callback):
    """Simulates a signal at a step: before its backward pass, at its end, or in the validation after it."""

    def __init__(self, watch: SignalWatch, step: int, moment: str) -> None:
        self.watch, self.step, self.moment = watch, step, moment

    def _signal(self, trainer: Trainer, moment: str) -> None:
        if trainer.global_step == self.step and moment == self.moment:
            self.watch.received = 15

    def on_before_backward(self, trainer: Trainer, *args: Any) -> None:
        self._signal(trainer, "backward")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._signal(trainer, "batch end")

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._signal(trainer, "validation")


@dataclass
class Training:
    """What is left of a training that ended or was interrupted."""

    trainer: Trainer
    weights: dict[str, torch.Tensor]
    points: dict[tuple[str, int], float]
    ended: bool
    decisions: list[Any] = field(default_factory=list)

    def optimizer(self) -> list[torch.Tensor]:
        states = self.trainer.optimizers[0].state_dict()["state"].values()
        return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def train(
    folder: Path,
    flags: list[str],
    stop: tuple[int, str] | None = None,
    checkpoint_every: int | None = None,
    patience: int = 9,
) -> Training:
    """Train from the newest checkpoint in `folder` to the end, or to a signal at `stop` (step, moment)."""
    warnings.filterwarnings("ignore", module=r"lightning\b")  # as the command line does
    watch = SignalWatch()
    cli = LitCLI(flags)
    recorder = Recorder()
    found = choose_checkpoint(folder, cli.model)
    lost = found is not None and found.best_is_lost
    exact = ExactResume(watch, CheckpointArgs(checkpoint_every, None), seed=3, best_is_lost=lost)
    early = EarlyStopping("val/loss", patience=patience, min_delta=0.3)
    best = best_callback(cli.model)
    exact.folder, best.dirpath = folder, str(folder)
    callbacks = [exact, early, best, *([Signal(watch, *stop)] if stop else [])]
    trainer = cli.make_trainer(logger=recorder, callbacks=callbacks, plugins=[AtomicCheckpointIO()])
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=found.path if found else None)
        ended = True
    except Interrupted:
        ended = False
    decisions = [early.wait_count, early.best_score, early.stopped_epoch, best.best_model_score]
    return Training(trainer, cli.model.state_dict(), recorder.points, ended, decisions)


def same_tensors(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_same(whole: Training, parts: list[Training]) -> None:
    """Check that the parts of an interrupted training together equal the whole training, bit for bit."""
    points: dict[tuple[str, int], float] = {}
    for part in parts:
        assert not points.keys() & part.points.keys()
        points |= part.points
    assert points == whole.points
    last = parts[-1]
    assert last.ended and last.trainer.global_step == whole.trainer.global_step
    assert same_tensors(list(last.weights.values()), list(whole.weights.values()))
    assert same_tensors(last.optimizer(), whole.optimizer())
    assert last.decisions == whole.decisions
