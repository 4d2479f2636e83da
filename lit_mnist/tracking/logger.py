"""The Lightning logger that passes a Trainer's metrics to a run."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_mnist.tracking.run import Run

FILES = "files"
"""The subfolder of a run's folder, and of its artifacts, for what callbacks write to `trainer.log_dir`."""


class MLflowTracker(Logger):
    """Logs a Trainer's metrics and hyperparameters to a run; does nothing on ranks other than 0.

    It does not set the run's status, since several Trainers may work on one run.

    Args:
        run: The run to log to; may be set later, before the Trainer starts.
        hyperparams: Also log the hyperparameters of model and data.

    """

    def __init__(self, run: Run | None = None, hyperparams: bool = True) -> None:
        super().__init__()
        # `fit` sets the run later, since it creates the Trainer first.
        self.run, self.hyperparams = run, hyperparams

    @property
    def name(self) -> str | None:
        """The experiment."""
        return self.run.experiment if self.run else None

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self.run.id if self.run else None

    @property
    def save_dir(self) -> str | None:
        """The folder for `trainer.log_dir`; its files become artifacts at the end of the fit."""
        return str(self.run.folder / FILES) if self.run else None

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log each hyperparameter in full."""
        assert self.run is not None
        if not self.hyperparams:
            return
        # Names that start with an underscore are Lightning's own.
        values = vars(params) if isinstance(params, Namespace) else params
        self.run.log_params({name: value for name, value in values.items() if not name.startswith("_")})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one point per metric."""
        assert self.run is not None
        # Lightning's interface allows a call without a step.
        self.run.log_metrics(metrics, step or 0)
