"""Keeps this project's signal handlers in place while a Trainer runs."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_mnist.signals import SignalWatch


class _NoHandlers(_SignalConnector):
    """A signal connector that installs nothing."""

    def register_signal_handlers(self) -> None:
        """Do nothing, so that the handlers of `SignalWatch` stay."""


def disable_signal_handlers(trainer: Trainer) -> None:
    """Keep `trainer` from installing its own signal handlers, which end a run at any point with exit code 0."""
    # Lightning's handlers would also requeue the job and write checkpoints named `hpc_ckpt_*`.
    trainer._signal_connector = _NoHandlers(trainer)


class StopEvaluation(Callback):
    """Ends a validation or a test at the first batch after a signal."""

    def __init__(self, watch: SignalWatch) -> None:
        self.watch = watch

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Raise `Interrupted` if a signal has come."""
        self.watch.check()

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Raise `Interrupted` if a signal has come."""
        self.watch.check()
