"""How long a stage takes and how large its checkpoints are, from a few steps of it."""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_mnist.sweeps.resources import threads_each
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.lightning.fast_step import use_fast_step

STEPS = 6
WARM_UP = 2
"""Steps that come first and are not counted."""


@dataclass(frozen=True)
class Cost:
    """Of one training."""

    seconds: float
    bytes: int
    """Of one checkpoint."""


@dataclass(frozen=True)
class Length:
    """Of one training that nothing ends early."""

    steps: int
    """Optimiser steps."""
    validations: int


class _EnoughError(Exception):
    """The steps wanted have been timed."""


class _Clock(Callback):
    """Times the first steps of training and of validation, and ends the training."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[float] = []
        self.bytes = 0
        self._start = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop, with what a checkpoint would hold at this step."""
        self.train.append(self._passed(pl_module))
        tensors = [*pl_module.state_dict().values(), *_tensors(trainer.optimizers[0].state_dict())]
        self.bytes = sum(tensor.nbytes for tensor in tensors)

    def on_validation_batch_start(self, *args: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop."""
        self.val.append(self._passed(pl_module))

    def on_validation_end(self, *args: Any) -> None:
        """End, before means are looked at: at the ends of a space a training may well diverge."""
        raise _EnoughError

    def _passed(self, module: LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter() - self._start


def measure(cli: LitCLI) -> Cost:
    """The cost of the training that `cli` describes, on one device; leaves no run and no file.

    Raises:
        RuntimeError: a step does not go through.

    """
    clock = _Clock()
    steps = {"max_steps": STEPS, "max_epochs": -1, "limit_train_batches": STEPS, "limit_val_batches": 2}
    every = {"check_val_every_n_epoch": 1, "val_check_interval": None, "log_every_n_steps": 10**6}
    trainer = cli.make_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[clock],
        devices=1, num_nodes=1, strategy="auto", **steps, **every,
    )  # fmt: skip
    use_fast_step(trainer)
    with suppress(_EnoughError):
        trainer.fit(cli.model, datamodule=cli.datamodule)
    step = statistics.median(clock.train[WARM_UP:] or clock.train)
    length = measure_length(cli)
    evaluation = statistics.median(clock.val) * len(cli.datamodule.val_dataloader())
    return Cost(length.steps * step + length.validations * evaluation, clock.bytes)


@contextmanager
def threads_of_a_worker(workers: int) -> Iterator[None]:
    """Compute with as many threads as each of so many workers would have."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_each(workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_length(cli: LitCLI) -> Length:
    """Steps and validations of the training that `cli` describes, by the rules of Lightning's loops.

    The datamodule must be set up. Of a training on several devices, each gets its share of the batches. With
    neither `max_epochs` nor `max_steps`, one epoch is counted.
    """
    trainer = cli.config["trainer"]
    batches = len(cli.datamodule.train_dataloader()) // max(1, _world_size(trainer))
    if trainer["fast_dev_run"]:
        return Length(int(trainer["fast_dev_run"]), 1)
    for limit in (trainer["limit_train_batches"], trainer["overfit_batches"] or None):
        if limit is not None:
            batches = min(batches, limit if isinstance(limit, int) else int(batches * limit))
    batches = max(1, batches)
    accumulated = max(1, trainer["accumulate_grad_batches"])
    per_epoch = math.ceil(batches / accumulated)
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    has_epochs, has_steps = epochs is not None and epochs >= 0, steps is not None and steps >= 0
    total = per_epoch * (epochs if has_epochs else 1)
    if has_steps:
        total = min(total, steps) if has_epochs else steps
    full, rest = divmod(total, per_epoch)

    interval = trainer["val_check_interval"]
    every = 1.0 if interval is None else interval
    if trainer["limit_val_batches"] == 0:
        return Length(total, 0)
    if not isinstance(every, int | float):  # a time: how often that is depends on the machine
        return Length(total, max(1, full))
    between = every if isinstance(every, int) else max(1, int(batches * every))
    begun = min(rest * accumulated, batches)  # batches of the last epoch, if the steps end before it does
    if (nth := trainer["check_val_every_n_epoch"]) is None:
        return Length(total, (full * batches + begun) // between)
    last = begun // between if (full + 1) % nth == 0 else 0
    return Length(total, full // nth * (batches // between) + last)


def _world_size(trainer: Any) -> int:
    """Processes of a training, as far as the configuration says."""
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
    return count * int(trainer["num_nodes"])


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict | list):
        return [
            tensor for part in (state.values() if isinstance(state, dict) else state) for tensor in _tensors(part)
        ]
    return []
