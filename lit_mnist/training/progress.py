"""Progress of a training on the terminal, or as lines in a log file."""

import sys
import time
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme


def progress_callback() -> Callback:
    """Return a live bar for a terminal, or a printer of lines for anything else."""
    if sys.stdout.isatty():
        # A bar that is redrawn at each step takes longer than the step of a small network.
        return LiveBar(refresh_rate=25, leave=True, theme=RichProgressBarTheme(metrics_format=".4f"))
    return EpochLines()


class LiveBar(RichProgressBar):
    """Lightning's bar, with the latest training and validation metrics beside it."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics to show."""
        shown = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and not name.endswith("_epoch")
        }
        return {**_without_repetitions(shown)}


class EpochLines(Callback):
    """Prints a line at the end of an epoch, at most one in `seconds`, and one at the end of training."""

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._last_time = time.monotonic()
        self._last_step = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line, unless the last one is younger than `seconds`."""
        if time.monotonic() - self._last_time >= self.seconds:
            self._print(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line, unless the end of the epoch has just done so."""
        if trainer.global_step != self._last_step:
            self._print(trainer, trainer.current_epoch)

    def _print(self, trainer: Trainer, epoch: int) -> None:
        self._last_time, self._last_step = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero:
            return
        logged = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        shown = {k: value for k, value in logged.items() if k.startswith("val/") or k.endswith("_epoch")}
        values = "  ".join(f"{name} {value:.4f}" for name, value in _without_repetitions(shown).items())
        limit = f" of {trainer.max_steps:,}" if trainer.max_steps != -1 else ""
        print(f"epoch {epoch}  step {trainer.global_step:,}{limit}  {values}", flush=True)


def _without_repetitions(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those that have the value of the loss beside them, as an autoencoder's `val/mse` has."""
    losses = {name.partition("/")[0]: value for name, value in metrics.items() if "/loss" in name}
    return {k: v for k, v in metrics.items() if "/loss" in k or losses.get(k.partition("/")[0]) != v}
