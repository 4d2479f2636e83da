"""The Lightning callback by which a trial's training reports to its study and is pruned."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import Trial
from torch import Tensor

from lit_mnist.errors import UserError
from lit_mnist.sweeps.search.optuna_private import has_reported
from lit_mnist.sweeps.search.spec_file import Objective
from lit_mnist.sweeps.study.job_time import FIRST_SAVE
from lit_mnist.sweeps.study.leases import check_owner
from lit_mnist.sweeps.study.summary import UNREPORTED
from lit_mnist.sweeps.study.trial_runs import REASON, STATE
from lit_mnist.tracking.logger import MLflowTracker


class Reporter(Callback):
    """Reports the objective after each validation, and stops the training if the pruner prunes the trial.

    Args:
        objective: The metric to report.
        trial: The trial to report to; None on ranks other than 0.
        reports: True to report values to the pruner. For later seeds, and in studies with several objectives,
            validations are only counted.
        seed: The training's seed.
        reason: Why the trial was pruned, if that happened before an interruption.
        on_run: Called with the id of the MLflow run when the fit starts.

    """

    def __init__(
        self,
        objective: Objective,
        trial: Trial | None,
        reports: bool,
        seed: int,
        reason: str | None,
        on_run: Callable[[str], object],
    ) -> None:
        self.objective, self.trial, self.reports, self.seed = objective, trial, reports, seed
        self.reason, self._on_run = reason, on_run
        self.owner: Mapping[str, Any] | None = None
        """The worker that must hold the trial's lease whenever a validation is stored."""
        self.begun = time.monotonic()
        """When the work on this training began, by the clock that all processes of the machine share."""
        self.validations, self.seconds, self.parameters = 0, 0.0, 0
        self._started: float | None = None
        self._is_saved = False

    @property
    def discards_checkpoints(self) -> bool:
        """True if the trial was pruned, so that its checkpoints are not needed."""
        return self.reason is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed training: number of validations and seconds so far."""
        return {"validations": self.validations, "seconds": self._elapsed(), "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts at the checkpoint."""
        # Not the reason, which comes from the trial: the checkpoint may be older than the pruner's decision.
        self.validations, self.seconds = state_dict["validations"], state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the parameters, and call `on_run` with the run's id."""
        self.parameters = count_parameters(pl_module)
        if trainer.is_global_zero and isinstance(trainer.logger, MLflowTracker) and trainer.logger.run is not None:
            self._on_run(trainer.logger.run.id)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; stop at once if the trial was pruned before."""
        self._started = time.perf_counter()
        if self.reason is not None:
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record the time until the training can be resumed."""
        self._note_first_save()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the objective, or count the validation, and stop the training if the trial is pruned."""
        if trainer.sanity_checking:
            return
        # The pruner's step is the number of the validation: an epoch may have several, or none.
        step, self.validations = self.validations, self.validations + 1
        self._note_first_save()
        # A worker that was suspended must not report to a trial that another worker has taken over.
        if self.trial is not None and self.owner is not None:
            check_owner(self.trial.storage, self.trial, self.owner)
        if not self.reports:
            # Store only the number of validations, from which `Leases` sees that the trial has progressed.
            counts = {} if self.trial is None else self.trial.user_attrs.get(UNREPORTED, {})
            if self.trial is not None and self.validations > counts.get(str(self.seed), 0):
                self.trial.set_user_attr(UNREPORTED, {**counts, str(self.seed): self.validations})
            return
        # Only rank 0 has the trial and calls the pruner.
        is_pruned = self._report(trainer, step) if trainer.is_global_zero else False
        # All ranks must stop at the same step, since the others would wait for rank 0 forever.
        if trainer.strategy.broadcast(is_pruned):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics and tags that the study shows to the run."""
        self.seconds = self._elapsed()
        self._started = None
        if trainer.is_global_zero and isinstance(trainer.logger, MLflowTracker) and trainer.logger.run is not None:
            run = trainer.logger.run
            run.log_metrics({"parameters": self.parameters, "seconds": self.seconds}, trainer.global_step)
            run.set_tags({STATE: "complete"} if self.reason is None else {STATE: "pruned", REASON: self.reason})

    def measured(self) -> dict[str, float]:
        """Return the metrics that models do not log: number of parameters and seconds of training."""
        return {"parameters": float(self.parameters), "seconds": self.seconds}

    def _report(self, trainer: Trainer, step: int) -> bool:
        """Report validation number `step`, and return True if the trial is pruned."""
        assert self.trial is not None
        name = self.objective.metric.removeprefix("best/")
        value = trainer.callback_metrics.get(name)
        # A training that is resumed from an older checkpoint repeats validations. The first reported value is
        # kept, and so is the pruner's decision.
        if not isinstance(value, Tensor) or has_reported(self.trial, step):
            return False
        check_finite(name, float(value), trainer)
        self.trial.report(float(value), step)
        if not self.trial.should_prune():
            return False
        self.reason = f"at epoch {trainer.current_epoch + 1} with {name} {float(value):.4g}"
        # Stored before the training stops, so that a worker that takes over the trial does not continue it.
        self.trial.set_user_attr("pruned", self.reason)
        return True

    def _note_first_save(self) -> None:
        """Store the seconds to the first checkpoint or validation; see `job_time`."""
        if self.trial is not None and not self._is_saved:
            self._is_saved = True
            self.trial.set_user_attr(FIRST_SAVE, round(time.monotonic() - self.begun, 3))

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._started is None else time.perf_counter() - self._started)


def check_finite(name: str, value: float, trainer: Trainer | None = None) -> None:
    """Check that a metric is finite.

    Raises:
        UserError: it is infinite or NaN; the message has the step if `trainer` is given.

    """
    # For infinity and NaN the difference is NaN, which differs from 0.
    if value - value != 0:
        where = f" at step {trainer.global_step} (epoch {trainer.current_epoch})" if trainer else ""
        raise UserError(f"{name} is {value}{where}: training has diverged")


def count_parameters(model: LightningModule) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
