"""Signals only set a flag; the run ends after the step in flight."""

import os
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback

from lit_mnist.tracking.run import Interrupted

WATCHED = (signal.SIGTERM, signal.SIGINT)


class SignalWatch(Callback):
    """Notes SIGTERM and SIGINT, and raises `Interrupted` when the step or validation batch in flight is done.

    A second signal changes nothing; the third ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._count = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        for number in WATCHED:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """End after the step in flight."""
        self.check()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """End after the batch in flight."""
        self.check()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """End after the batch in flight."""
        self.check()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 2:
            os._exit(128 + number)
        if self.received is None:
            self.received = number
