"""Progress of a training on the terminal, or as lines in a log file."""

import sys
import time

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme


def progress_callback() -> Callback:
    """Return a live bar for a terminal, or a printer of lines for anything else."""
    if sys.stdout.isatty():
        return LiveBar(refresh_rate=25, leave=True, theme=RichProgressBarTheme(metrics_format=".4f"))
    return EpochLines()


class LiveBar(RichProgressBar):
    """Lightning's bar, with the latest training and validation metrics beside it."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics to show."""
        return {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and not name.endswith("_epoch")
        }


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
        metrics = trainer.callback_metrics
        names = sorted(name for name in metrics if name.startswith("val/") or name.endswith("_epoch"))
        values = "  ".join(f"{name} {float(metrics[name]):.4f}" for name in names)
        print(f"epoch {epoch}  step {trainer.global_step:,}  {values}", flush=True)
