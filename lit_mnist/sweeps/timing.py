"""What one training costs, from a few steps of it: seconds, and bytes of a checkpoint."""

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
"""What a training takes beside its steps and validations: configuration, MLflow run, checkpoints, end. An estimate
from a few trials on two cores that had other work as well."""


@dataclass(frozen=True)
class Cost:
    """What one training takes."""

    seconds: float
    bytes: int
    """Size of one checkpoint."""


class _StopError(Exception):
    """All steps that are needed have been timed."""


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
        """Stop the clock, and add up what a checkpoint would hold at this step."""
        self.train.append(self._elapsed(pl_module))
        # A checkpoint is weights and optimiser state; the rest of it is small.
        tensors = [*pl_module.state_dict().values(), *_tensors(trainer.optimizers[0].state_dict())]
        self.checkpoint_bytes = sum(tensor.nbytes for tensor in tensors)

    def on_validation_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop the clock."""
        self.val.append(self._elapsed(pl_module))

    def on_validation_end(self, *args: Any) -> None:
        """End the training before anybody looks at its means: at the ends of a space it may well diverge."""
        raise _StopError

    def _elapsed(self, module: LightningModule) -> float:
        if module.device.type == "cuda":  # kernels run asynchronously
            torch.cuda.synchronize(module.device)
        return time.perf_counter() - self._start


def measure(cli: LitCLI) -> Cost:
    """Time a few steps of the training that `cli` describes, on one device; no run and no file is left.

    Where the encoder is frozen for the first `frozen_epochs`, steps of both phases are timed. Those of the frozen
    phase are an upper bound: here each step computes codes that a whole training computes once. Without a backward
    pass through the encoder they are the smaller part all the same.

    Raises:
        RuntimeError: a step fails, for example for lack of memory.

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
    # The first batch allocates memory. A validation of one batch has no other, and then it counts for little.
    validation = min(last.val) * len(cli.datamodule.val_dataloader()) if last.val else 0.0
    return Cost(FIXED_SECONDS + taken + length.validations * validation, last.checkpoint_bytes)


def step_seconds(batches: Sequence[float], accumulated: int) -> float:
    """Seconds of an optimiser step, from those of consecutive batches, of which each step takes `accumulated`.

    The median of the steps: on a shared machine single ones take several times as long.
    """
    kept = batches[WARM_UP:] or batches
    starts = range(0, len(kept) - accumulated + 1, accumulated)
    # With fewer batches than a step takes, their mean has to do.
    return statistics.median(
        [sum(kept[i : i + accumulated]) for i in starts] or [accumulated * statistics.fmean(kept)]
    )


def _time_steps(cli: LitCLI) -> _Clock:
    clock = _Clock()
    # The training's own batches, but few of them, then one validation, at whose end `_Clock` stops.
    short = {"max_steps": STEPS, "max_epochs": -1, "limit_train_batches": STEPS, "limit_val_batches": 2}
    # Logging would pull in the tracking; once in a million steps is never here.
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
    """Compute with as many threads as each of `workers` processes would have."""
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
