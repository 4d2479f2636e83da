"""What a user sees while a run trains."""

import sys
import time

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme


def progress_callback() -> Callback:
    """A live bar on a terminal, a line an epoch elsewhere."""
    if sys.stdout.isatty():
        return LiveBar(refresh_rate=25, leave=True, theme=RichProgressBarTheme(metrics_format=".4f"))
    return EpochLines()


class LiveBar(RichProgressBar):
    """Lightning's bar, with the latest losses and accuracies beside it."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar."""
        return {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and not name.endswith("_epoch")
        }


class EpochLines(Callback):
    """Prints a line at an epoch's end, at most one every `seconds`, and one at the end of training."""

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._last_time = time.monotonic()
        self._last_step = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print where training stands unless that was done a moment ago."""
        if time.monotonic() - self._last_time >= self.seconds:
            self._print(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print where training has ended."""
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
