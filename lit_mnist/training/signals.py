"""Signals only set a flag; the run ends after the step in flight."""

import os
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_mnist.tracking.run import Interrupted

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class NoHandlers(_SignalConnector):
    """Keeps a Trainer from handlers of its own, which end a run at other places, with exit code 0."""

    def register_signal_handlers(self) -> None:
        """Leave the handlers as `SignalWatch` has set them."""


class SignalWatch(Callback):
    """Notes SIGTERM, SIGINT and SIGHUP, and raises `Interrupted` when the batch in flight is done.

    A second signal changes nothing; the third ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._count = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        for number in WATCHED:
            self._previous[number] = signal.getsignal(number)
            if self._previous[number] != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    # At a batch's end the step's metrics are yet to be logged: the next batch's start is the place.

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """End after the step before."""
        self.check()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """End after the batch before."""
        self.check()

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """End after the batch before."""
        self.check()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 2:
            os._exit(128 + number)
        if self.received is None:
            self.received = number
