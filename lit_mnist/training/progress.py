"""Progress display of a training: a line per epoch, and on a terminal also a line that is redrawn."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lit_mnist.terminal import seconds
from lit_mnist.tracking.queries.metrics import without_repeats

REDRAW_INTERVAL = 0.2
"""Seconds between two updates of the line on a terminal."""


def progress_callback() -> Callback:
    """Return the progress callback: with a redrawn line on a terminal, with lines only in a log file."""
    return LiveProgress() if sys.stdout.isatty() else EpochLines()


class EpochLines(Callback):
    """Prints a line at the end of an epoch, at most one in `interval` seconds, and one at the end of training."""

    def __init__(self, interval: float = 2.0) -> None:
        self.interval = interval
        self._last_time = time.monotonic()
        self._last_step = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line, unless the last one was printed less than `interval` seconds ago."""
        # Epochs of a small network take less than a second, and a log file does not need a line for each.
        if time.monotonic() - self._last_time >= self.interval:
            self._print(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line, unless the end of the epoch has just done so."""
        if trainer.global_step != self._last_step:
            self._print(trainer, trainer.current_epoch)

    def _print(self, trainer: Trainer, epoch: int) -> None:
        self._last_time, self._last_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            self._show(f"{_position(trainer, epoch)}  {_metrics(trainer)}")

    def _show(self, line: str) -> None:
        print(line, flush=True)


class LiveProgress(EpochLines):
    """Prints the same lines, and below them redraws one with step, metrics, and estimated time left.

    Lightning's progress bar (2.6) is not used: it leaves a bar for each epoch, takes three lines on 100 columns,
    and shows `Epoch 0/-2` if the length of training is given in steps.
    """

    def __init__(self, interval: float = 2.0) -> None:
        super().__init__(interval)
        self._live: Live | None = None
        self._drawn = 0.0
        self._first_step, self._started = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start drawing unless the user has a progress bar; store the first step (not 0 after a resume)."""
        self._first_step, self._started = trainer.global_step, time.monotonic()
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            self._live = Live(console=Console(), auto_refresh=False, transient=True)
            self._live.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Redraw the line, at most every REDRAW_INTERVAL."""
        # The clock is read in each batch, the metrics only if there is something to draw.
        if self._live is None or (now := time.monotonic()) - self._drawn < REDRAW_INTERVAL:
            return
        self._drawn = now
        parts = [_position(trainer, trainer.current_epoch + 1)]
        done, total = trainer.global_step - self._first_step, trainer.estimated_stepping_batches
        if done and total != float("inf"):
            # In seconds, by this process's own speed: the steps before a resume may have run on another machine.
            left = (now - self._started) / done * (total - trainer.global_step)
            parts.append(f"about {seconds(max(0.0, left))} left")
        self._live.update(_cropped("  ".join([*parts, _metrics(trainer)])), refresh=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop drawing, also after an exception."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, line: str) -> None:
        if self._live is None:
            super()._show(line)
        else:
            # Through rich, which prints above the redrawn line; a plain print would break that line.
            self._live.console.print(_cropped(line))


def _cropped(line: str) -> Text:
    return Text(line, no_wrap=True, overflow="ellipsis")


def _position(trainer: Trainer, epoch: int) -> str:
    """Epoch and step, each with its limit if there is one."""
    epochs = f" of {trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
    steps = f" of {trainer.max_steps:,}" if trainer.max_steps != -1 else ""
    return f"epoch {epoch}{epochs}  step {trainer.global_step:,}{steps}"


def _metrics(trainer: Trainer) -> str:
    """The latest validation metrics, and training metrics of the last epoch (in the first one, of a few steps)."""
    # The values are already on the CPU, so reading them does not wait for a GPU.
    logged = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    val = {name: value for name, value in logged.items() if name.startswith("val/")}
    train = {name: value for name, value in logged.items() if name.startswith("train/")}
    epoch = {k.removesuffix("_epoch"): value for k, value in train.items() if k.endswith("_epoch")}
    return "  ".join(f"{name} {value:.4f}" for name, value in without_repeats(val | (epoch or train)).items())
