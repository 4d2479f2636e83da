"""What a Trainer has to do with signals."""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_mnist.signals import SignalWatch


class NoHandlers(_SignalConnector):
    """Keeps a Trainer from handlers of its own, which end a run at other places, with exit code 0."""

    def register_signal_handlers(self) -> None:
        """Leave the handlers as `SignalWatch` has set them."""


class HeedSignals(Callback):
    """Ends an evaluation at the batch after a signal."""

    def __init__(self, watch: SignalWatch) -> None:
        self.watch = watch

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """End after the batch before."""
        self.watch.check()

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """End after the batch before."""
        self.watch.check()
