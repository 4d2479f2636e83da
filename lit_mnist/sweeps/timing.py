"""Estimates the cost of a training from a few steps: seconds, and bytes per checkpoint."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_mnist.sweeps.resources import threads_each
from lit_mnist.sweeps.search.validation import training_length
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.lightning.fast_step import use_fast_step

STEPS = 12
WARM_UP = 4
"""The first steps, which allocate memory and are not counted."""
FIXED_SECONDS = 0.6
"""Time of a training apart from steps and validations: configuration, MLflow run, checkpoints, end.

With it, the plans of three small sweeps were 0.80, 0.94 and 1.11 times the time that they took on two idle cores.
"""


@dataclass(frozen=True)
class Cost:
    """The cost of one training."""

    seconds: float
    bytes: int
    """Size of one checkpoint."""


class _StopError(Exception):
    """Ends a training when enough steps have been timed."""


class _Clock(Callback):
    """Times the first steps of training and of validation, and ends the training."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[float] = []
        self.checkpoint_bytes = 0
        self._start = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop the clock, and compute the size of a checkpoint at this step."""
        self.train.append(self._elapsed(pl_module))
        # Weights and optimiser state; the rest of a checkpoint is small.
        tensors = [*pl_module.state_dict().values(), *_tensors(trainer.optimizers[0].state_dict())]
        self.checkpoint_bytes = sum(tensor.nbytes for tensor in tensors)

    def on_validation_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop the clock."""
        self.val.append(self._elapsed(pl_module))

    def on_validation_end(self, *args: Any) -> None:
        """End the training before its metrics are checked, since it may diverge at the ends of a space."""
        raise _StopError

    def _elapsed(self, module: LightningModule) -> float:
        if module.device.type == "cuda":  # kernels run asynchronously
            torch.cuda.synchronize(module.device)
        return time.perf_counter() - self._start


def measure(cli: LitCLI) -> Cost:
    """Time a few steps of the training that `cli` describes, on one device; creates no run and no files.

    If the encoder is frozen for the first `frozen_epochs`, steps of both phases are timed. The times of the frozen
    phase are an upper bound, since each step here computes codes that a whole training computes only once. They
    are still the smaller part, since there is no backward pass through the encoder.

    Raises:
        RuntimeError: a step fails, for example because memory is exhausted.

    """
    first = last = _time_steps(cli)
    length = training_length(cli)
    frozen_steps = 0
    if frozen_epochs := cli.model.hparams.get("frozen_epochs", 0):
        frozen_steps = min(length.steps, frozen_epochs * length.per_epoch)
    if 0 < frozen_steps < length.steps:
        cli.model.hparams["frozen_epochs"] = 0
        last = _time_steps(cli)
        cli.model.hparams["frozen_epochs"] = frozen_epochs
    accumulated = max(1, cli.config["trainer"]["accumulate_grad_batches"])
    taken = frozen_steps * step_seconds(first.train, accumulated)
    taken += (length.steps - frozen_steps) * step_seconds(last.train, accumulated)
    # The minimum, since the first batch also allocates memory; this matters little for a validation of one batch.
    validation = min(last.val) * len(cli.datamodule.val_dataloader()) if last.val else 0.0
    return Cost(FIXED_SECONDS + taken + length.validations * validation, last.checkpoint_bytes)


def step_seconds(batches: Sequence[float], accumulated: int) -> float:
    """Median seconds per optimiser step, from the times of batches; each step accumulates `accumulated` batches.

    The median, since single steps take several times as long on a shared machine.
    """
    kept = batches[WARM_UP:] or batches
    starts = range(0, len(kept) - accumulated + 1, accumulated)
    # With fewer batches than one step needs, use their mean.
    return statistics.median(
        [sum(kept[i : i + accumulated]) for i in starts] or [accumulated * statistics.fmean(kept)]
    )


def _time_steps(cli: LitCLI) -> _Clock:
    clock = _Clock()
    # A few batches of the training, then a short validation, after which `_Clock` ends the training.
    short = {"max_steps": STEPS, "max_epochs": -1, "limit_train_batches": STEPS, "limit_val_batches": 2}
    # log_every_n_steps is so large that nothing is logged.
    every = {"check_val_every_n_epoch": 1, "val_check_interval": None, "log_every_n_steps": 10**6}
    trainer = cli.make_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[clock],
        devices=1, num_nodes=1, strategy="auto", **short, **every,
    )  # fmt: skip
    use_fast_step(trainer)
    with suppress(_StopError):
        trainer.fit(cli.model, datamodule=cli.datamodule)
    return clock


@contextmanager
def worker_threads(workers: int) -> Iterator[None]:
    """Use the number of threads that each of `workers` processes would have."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_each(workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(state: Any) -> list[torch.Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
