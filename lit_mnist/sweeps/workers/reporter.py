"""What a trial's training tells its study, and how the study ends it early."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import Trial
from torch import Tensor

from lit_mnist.errors import UserError
from lit_mnist.sweeps.search.optuna_private import has_reported
from lit_mnist.sweeps.search.spec import Objective
from lit_mnist.sweeps.study.summary import UNREPORTED
from lit_mnist.sweeps.study.trial_runs import REASON, STATE
from lit_mnist.tracking.logger import MLflowTracker


class Reporter(Callback):
    """Reports the goal after each validation, and ends a training that the pruner gives up.

    Args:
        goal: What is reported.
        trial: The trial to report to; None in a process other than rank 0.
        reports: Whether the pruner sees the values. Of later seeds and of several objectives it does not: their
            validations are only counted.
        seed: The training's.
        reason: Why the trial was pruned already, where it was before it was interrupted.
        began: Called with the run's id when it is there.

    """

    def __init__(
        self,
        goal: Objective,
        trial: Trial | None,
        reports: bool,
        seed: int,
        reason: str | None,
        began: Callable[[str], object],
    ) -> None:
        self.goal, self.trial, self.reports, self.seed = goal, trial, reports, seed
        self.reason, self._began = reason, began
        self.validations, self.seconds, self.parameters = 0, 0.0, 0
        self._since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on has to know: its validations, and the seconds it has taken."""
        return {"validations": self.validations, "seconds": self._elapsed(), "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.validations, self.seconds = state_dict["validations"], state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the parameters, and tell which run it is."""
        self.parameters = count_parameters(pl_module)
        if trainer.is_global_zero and isinstance(trainer.logger, MLflowTracker) and trainer.logger.run is not None:
            self._began(trainer.logger.run.id)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a training that was given up already ends at once."""
        self._since = time.perf_counter()
        if self.reason is not None:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the goal, and end training if the study has no hope for it."""
        if trainer.sanity_checking:
            return
        step, self.validations = self.validations, self.validations + 1
        if not self.reports:
            self._count()
            return
        given_up = self._report(trainer, step) if trainer.is_global_zero else False
        if trainer.strategy.broadcast(given_up):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the study wants to know of the run."""
        self.seconds = self._elapsed()
        self._since = None
        if trainer.is_global_zero and isinstance(trainer.logger, MLflowTracker) and trainer.logger.run is not None:
            run = trainer.logger.run
            run.log_metrics({"parameters": self.parameters, "seconds": self.seconds}, trainer.global_step)
            state = {STATE: "complete"} if self.reason is None else {STATE: "pruned", REASON: self.reason}
            run.set_tags(state)

    def measured(self) -> dict[str, float]:
        """The objectives that no model logs."""
        return {"parameters": float(self.parameters), "seconds": self.seconds}

    def _report(self, trainer: Trainer, step: int) -> bool:
        """Report validation number `step`; whether training is to end."""
        assert self.trial is not None
        name = self.goal.metric.removeprefix("best/")
        value = trainer.callback_metrics.get(name)
        if not isinstance(value, Tensor) or has_reported(self.trial, step):
            return False  # a training that goes on comes by what it has reported
        check_finite(name, float(value), trainer)
        self.trial.report(float(value), step)
        if not self.trial.should_prune():
            return False
        self.reason = f"at epoch {trainer.current_epoch + 1}: {name} {float(value):.4g} was not enough to go on"
        self.trial.set_user_attr("pruned", self.reason)
        return True

    def _count(self) -> None:
        """Let the study know that the trial gets further: see `Leases`, which counts attempts that do not."""
        if self.trial is None:
            return
        counts: dict[str, int] = self.trial.user_attrs.get(UNREPORTED, {})
        if self.validations > counts.get(str(self.seed), 0):
            self.trial.set_user_attr(UNREPORTED, {**counts, str(self.seed): self.validations})

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)


def check_finite(name: str, value: float, trainer: Trainer | None = None) -> None:
    """Refuse a value that is no number.

    Raises:
        UserError: it is not.

    """
    if value - value != 0:
        where = f" at step {trainer.global_step} (epoch {trainer.current_epoch})" if trainer else ""
        raise UserError(f"{name} is {value}{where}: training has diverged")


def count_parameters(model: LightningModule) -> int:
    """How many numbers `model` learns."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
