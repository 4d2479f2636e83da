"""One trial: its trainings, one a seed, and what the study is told of them."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
import torch
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import Trial

from lit_mnist.errors import Interrupted, UsageError, UserError, nearest
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.search.optuna_private import set_constraint
from lit_mnist.sweeps.search.spec import Spec, trial_stage
from lit_mnist.sweeps.study.leases import reason_to_give_up
from lit_mnist.sweeps.study.study import COMPLETE, FAIL, PRUNED
from lit_mnist.sweeps.study.summary import STATES
from lit_mnist.sweeps.study.trial_runs import TrialRuns
from lit_mnist.sweeps.workers.distributed import Job, fit_distributed
from lit_mnist.sweeps.workers.errors import is_infrastructure_error, reason_of
from lit_mnist.sweeps.workers.reporter import Reporter, check_finite, count_parameters
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.fit import fit
from lit_mnist.training.stages import Stage, suppress_stdout, take_source

CHEAP = (
    "--trainer.enable_progress_bar", "false",
    "--tracking.system_metrics", "false",
    "--tracking.figures", "false",
)  # fmt: skip
"""Flags of every trial, which is one of many."""
MANY = 100
"""Epochs of trainings that go by steps alone, as far as a pruner has to know."""


class PrunedError(Exception):
    """The trial is not worth to go on with; the text says why."""


class TrialWork:
    """The work on one trial of a study.

    Args:
        study: The study.
        spec: What it is about.
        trial: The trial, with its parameters.
        watch: Where signals are noted.
        extent: What trainings of the study take.

    """

    def __init__(
        self, study: optuna.Study, spec: Spec, trial: Trial, watch: SignalWatch, extent: "TrialPlan"
    ) -> None:
        self.study, self.spec, self.trial, self.watch, self.extent = study, spec, trial, watch, extent
        attrs = study.user_attrs
        self.point: Mapping[str, Any] = trial.user_attrs["point"]
        goal = f"{spec.objectives[0].direction} {spec.objectives[0].metric}"
        self.runs = TrialRuns(study.study_name, attrs["experiment"], attrs["run_id"], trial.number, goal)
        self.run_ids: list[str] = list(trial.user_attrs.get("runs", []))
        self.metrics: list[dict[str, float]] = []
        """Of each seed that is trained, in the order of the seeds."""
        self._was_begun = "begun" in trial.user_attrs  # else there is no run to look for
        self._start = time.perf_counter()

    @cached_property
    def stage(self) -> Stage:
        """What is trained."""
        return trial_stage(self.spec, self.point)

    def do(self) -> None:
        """Train what is left to train, and tell the study.

        Raises:
            Interrupted: a signal came; whoever takes the trial up goes on.
            Exception: it is none of the trial's, which is as it was.

        """
        try:
            self._train()
            state, reason = COMPLETE, None
        except Interrupted:
            self.trial.set_user_attr("seconds", self._seconds())
            raise
        except PrunedError as pruned:
            state, reason = PRUNED, str(pruned)
        except Exception as error:
            if is_infrastructure_error(error):
                raise
            state, reason = FAIL, reason_of(error)
        self._conclude(state, reason)

    def _train(self) -> None:
        self._check_attempts()
        self._check_size()
        if len(self.spec.seeds) > 1:
            self.runs.open_group()
        for seed in self.spec.seeds:
            self.watch.check()
            self.metrics.append(self._train_seed(seed))

    def _check_attempts(self) -> None:
        """Do not go on with a trial that kills its workers, or whose training raises the same errors each time.

        Raises:
            UserError: it does.

        """
        if (reason := reason_to_give_up(self.trial)) is None:
            return
        for seed in self.spec.seeds:
            if (run := self.runs.find(seed)) is not None and run.info.status != "FINISHED":
                self._began(run.info.run_id)
                self.runs.client.set_terminated(run.info.run_id, "FAILED")
        raise UserError(reason)

    def _check_size(self) -> None:
        """Do not train a network that is too large."""
        most = [c.at_most for c in self.spec.constraints if c.metric == "parameters"]
        if not most:
            return
        model = LitCLI(self.stage.arguments("full", self.spec.seeds[0])).model
        if (count := count_parameters(model)) > min(most):
            self._constrain("parameters", count - min(most))
            raise PrunedError(f"{count:,} parameters, more than {min(most):,.0f}")

    def _train_seed(self, seed: int) -> dict[str, float]:
        """The metrics of the fit with that seed; what of it is done already is not done again."""
        found = self.runs.find(seed) if self._was_begun else None
        if found is not None and found.info.status == "FINISHED":
            self._began(found.info.run_id)
            metrics = self.runs.metrics(found.info.run_id)
            if seed == self.spec.seeds[0] and "pruned" in self.trial.user_attrs:
                self.metrics.append(metrics)
                raise PrunedError(self.trial.user_attrs["pruned"])
            return self._checked(metrics)
        tags: dict[str, str] = {}
        if found is not None:
            arguments = ["--resume", found.info.run_id]
        else:
            source, tags = take_source(self.stage, "full", seed, self.watch)
            # Its run keeps it, for whoever goes on with the trial or repeats it.
            threads = ["--threads", str(torch.get_num_threads())]
            arguments = [*self.stage.arguments("full", seed), *source, *CHEAP, *threads, *self._names(seed)]
            tags |= self.runs.tags(seed)
        self.trial.set_user_attr("begun", True)
        try:
            metrics, reason = (self._fit_apart if self.extent.several else self._fit)(seed, arguments, tags)
        except Interrupted:
            raise
        except Exception as error:
            if not is_infrastructure_error(error) and (run := self.runs.find(seed)) is not None:
                self._began(run.info.run_id)
            raise
        if reason is not None:
            self.metrics.append(metrics)
            raise PrunedError(reason)
        return self._checked(metrics)

    def _fit(self, seed: int, arguments: list[str], tags: dict[str, str]) -> tuple[dict[str, float], str | None]:
        """The metrics of a fit in this process, and why it was pruned, if it was."""
        reports = self._reports(seed)
        reason = self.trial.user_attrs.get("pruned") if reports else None
        reporter = Reporter(self.spec.objectives[0], self.trial, reports, seed, reason, self._began)
        with suppress_stdout():
            result = fit(arguments, [reporter], self.watch, tags, leased=True)
        assert result is not None, "one process is rank 0, and an unfinished run has something left"
        return {**result.metrics, **reporter.measured()}, reporter.reason

    def _fit_apart(
        self, seed: int, arguments: list[str], tags: dict[str, str]
    ) -> tuple[dict[str, float], str | None]:
        """The same, of a fit on several devices."""
        job = Job(
            self.study.study_name,
            self.trial.number,
            seed,
            arguments,
            tags,
            self._reports(seed),
            self.extent.validations,
        )
        found = fit_distributed(job, self.watch)
        self._began(found["run"])
        return found["metrics"], found["reason"]

    def _reports(self, seed: int) -> bool:
        """Whether the study hears of each validation of the fit with that seed."""
        return seed == self.spec.seeds[0] and len(self.spec.objectives) == 1

    def _names(self, seed: int) -> list[str]:
        name = f"trial {self.trial.number}" + (f" seed {seed}" if len(self.spec.seeds) > 1 else "")
        return ["--tracking.experiment", self.runs.experiment, "--tracking.name", name]

    def _began(self, run_id: str) -> None:
        if run_id not in self.run_ids:
            self.run_ids.append(run_id)
            self.trial.set_user_attr("runs", self.run_ids)

    def _checked(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics, if every goal and constraint is among them, and a number."""
        for name in (*(goal.metric for goal in self.spec.objectives), *(c.metric for c in self.spec.constraints)):
            if name not in metrics:
                raise UserError(f"the trial has no metric {name}{nearest(name, metrics, listed=True)}")
            check_finite(name, metrics[name])
        return metrics

    def _mean(self, metric: str) -> float:
        return math.fsum(each[metric] for each in self.metrics) / len(self.metrics)

    def _conclude(self, state: optuna.trial.TrialState, reason: str | None) -> None:
        """Tell MLflow and the study how the trial ended."""
        objectives = self.spec.objectives
        values = [[each.get(goal.metric, math.nan) for goal in objectives] for each in self.metrics]
        if not self.run_ids and reason is not None:
            run_id = self.runs.record(self.spec.seeds[0], STATES[state], reason, self.point)
            self._began(run_id)
        elif state == FAIL:
            self.runs.mark(self.run_ids[-1], STATES[state], reason)
        self.runs.close_group(STATES[state], reason, self.metrics)
        if state == COMPLETE:
            for constraint in self.spec.constraints:
                self._constrain(constraint.metric, self._mean(constraint.metric) - constraint.at_most)
        told: dict[str, Any] = {"values": values, "seconds": self._seconds()}
        for key, value in (told | ({"reason": reason} if reason else {})).items():
            self.trial.set_user_attr(key, value)
        # What samplers and pruners would do at the end, such as to stop a loop of Optuna's own, is not wanted.
        self.study.sampler, self.study.pruner = RandomSampler(), NopPruner()
        mean = [self._mean(goal.metric) for goal in objectives] if state == COMPLETE else None
        self.study.tell(self.trial, mean, state)

    def _constrain(self, metric: str, excess: float) -> None:
        set_constraint(self.trial, metric, excess)

    def _seconds(self) -> float:
        """Spent on the trial, by all who have worked on it."""
        before: float = self.trial.user_attrs.get("seconds", 0.0)
        return round(before + time.perf_counter() - self._start, 3)


@dataclass(frozen=True)
class TrialPlan:
    """What the trainings of a study take."""

    validations: int
    """Of the longest that the space allows."""
    several: bool
    """Whether each is shared by several devices."""


def measure(spec: Spec, validations: int | None = None) -> TrialPlan:
    """What the trainings of `spec` take.

    Args:
        spec: The specification.
        validations: Those of the longest training, if `check` has counted them; otherwise one an epoch is assumed.

    Raises:
        UsageError: a source needs several devices.

    """
    kinds = spec.space.probe_points()
    stage = trial_stage(spec, kinds[0])
    trainer = _trainer(stage, spec)
    source = stage.source
    while source is not None:
        if _is_shared(_trainer(source, spec)):
            raise UsageError(f"source {source.config}: a sweep trains its sources on one device")
        source = source.source
    asked = [kind.get("trainer.max_epochs", trainer["max_epochs"]) for kind in kinds]
    counts = [epochs for epochs in asked if isinstance(epochs, int) and epochs > 0]
    return TrialPlan(validations or max(counts, default=MANY), _is_shared(trainer))


def _trainer(stage: Stage, spec: Spec) -> Mapping[str, Any]:
    trainer: Mapping[str, Any] = LitCLI(stage.arguments("full", spec.seeds[0])).config["trainer"]
    return trainer


def _is_shared(trainer: Mapping[str, Any]) -> bool:
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices
    return bool(trainer["num_nodes"] > 1 or str(count) != "1")
