"""How far an experiment is, and how long it is still going to take."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_mnist.terminal import seconds

EVERY = 15.0
"""Seconds between two lines about the same stage."""


class Progress(Callback):
    """Prints a line for each stage that ends, and one every now and then while it trains.

    The time left is that of the stages of the same name with earlier seeds; before there are any, the mean of the
    stages so far, and before those the experiment's own estimate.

    Args:
        title: The experiment's.
        names: The stages that are not finished yet, in their order.
        estimate: Seconds they may take, as a first guess.

    """

    def __init__(self, title: str, names: Sequence[str], estimate: float) -> None:
        self.title, self.left = title, list(names)
        self.total = len(self.left)
        self._guess = estimate / max(1, self.total)
        self._took: dict[str, float] = {}
        self._start = self._said = time.monotonic()
        self._first_step = 0
        self._out = sys.stdout  # while it trains, a stage's own output goes elsewhere

    def begin(self) -> None:
        """The next stage begins."""
        self._start = self._said = time.monotonic()

    def end(self, what: str) -> None:
        """The stage that began last has ended."""
        self._took[self.left.pop(0)] = took = time.monotonic() - self._start
        left = f", about {seconds(self.seconds_left())} left" if self.left else ""
        done = self.total - len(self.left)
        print(
            f"{self.title}: {done} of {self.total} stages, {what} in {seconds(took)}{left}",
            file=self._out,
            flush=True,
        )

    def seconds_left(self, share: float = 0.0) -> float:
        """Seconds until all is trained, when the present stage is done to the share `share`."""
        if not self.left:
            return 0.0
        present = self._expected(self.left[0])
        if share > 0:
            present = (time.monotonic() - self._start) / share
        return present * (1 - share) + sum(map(self._expected, self.left[1:]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where this training goes on."""
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Print how far the stage is, if that was not done a moment ago."""
        now = time.monotonic()
        if now - self._said < EVERY:
            return
        self._said = now
        steps = float(trainer.estimated_stepping_batches) - self._first_step
        share = (trainer.global_step - self._first_step) / steps if steps > 0 else 0.0
        left = seconds(self.seconds_left(min(max(share, 0.0), 1.0)))
        print(f"  {self.left[0]}: {share:.0%} trained, about {left} left in all", file=self._out, flush=True)

    def _expected(self, name: str) -> float:
        if name in self._took:
            return self._took[name]
        return sum(self._took.values()) / len(self._took) if self._took else self._guess
