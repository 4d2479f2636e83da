"""One trial: a training for each seed of the study, each of them one MLflow run, then the result.

Every step may be the last: the worker may be killed anywhere. Whoever takes the trial over runs all of it again,
and each step finds what is done already: a finished run gives its metrics, an unfinished one is resumed, a pruned
training stays pruned. `Study.tell` comes last, since it is what ends the trial.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from optuna.trial import Trial, TrialState

from lit_mnist.errors import Interrupted, UsageError, UserError, nearest
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.resources import Devices, count_devices
from lit_mnist.sweeps.search.optuna_private import has_reported, set_constraint
from lit_mnist.sweeps.search.spec import Spec, trial_stage
from lit_mnist.sweeps.study.leases import Leases, check_owner, reason_to_give_up
from lit_mnist.sweeps.study.study import COMPLETE, FAIL, PRUNED
from lit_mnist.sweeps.study.summary import STATES
from lit_mnist.sweeps.study.trial_runs import TrialRuns
from lit_mnist.sweeps.workers.distributed import Job, fit_distributed
from lit_mnist.sweeps.workers.errors import describe_error, is_infrastructure_error
from lit_mnist.sweeps.workers.reporter import Reporter, check_finite, count_parameters
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.fit import fit
from lit_mnist.training.stages import Stage, suppress_stdout, take_source

QUIET_FLAGS = (
    "--trainer.enable_progress_bar", "false",
    "--tracking.system_metrics", "false",
    "--tracking.figures", "false",
)  # fmt: skip
"""Flags of every trial: nobody watches its progress, and hundreds of runs with figures fill a disk."""
UNKNOWN_VALIDATIONS = 100
"""What a pruner is told of trainings whose length is given in steps, if nobody has counted their validations."""

Outcome = tuple[dict[str, float], str | None]
"""The metrics of a training, and the reason if it was pruned."""


class PrunedError(Exception):
    """The trial ends early because it is not promising or not allowed; the text says why."""


@dataclass(frozen=True)
class TrialPlan:
    """What all trainings of a study have in common."""

    validations: int
    """Of the longest training."""
    devices: tuple[Devices, ...]
    """`trainer.devices` of each of the space's probe points, which have every value that it may take."""
    may_use_gpus: bool
    """False if all trainings run on the CPU, whatever GPUs there are."""

    def is_distributed(self, point: Mapping[str, Any]) -> bool:
        """True if the training of `point` takes several devices."""
        return count_devices(point.get("trainer.devices", self.devices[0])) != 1


def plan_trials(spec: Spec, validations: int | None = None) -> TrialPlan:
    """Return what the trainings of the study need.

    Args:
        spec: The specification.
        validations: Of the longest training, if counted by `check`; otherwise one for each epoch is assumed.

    Raises:
        UsageError: a source, from which trainings start, needs several devices.

    """

    def trainer_of(stage: Stage) -> Mapping[str, Any]:
        trainer: Mapping[str, Any] = LitCLI(stage.arguments("full", spec.seeds[0])).config["trainer"]
        return trainer

    # They have every value of each choice and both ends of each interval, so also the longest training.
    points = spec.space.probe_points()
    stage = trial_stage(spec, points[0])
    trainer = trainer_of(stage)
    while (stage_below := stage.source) is not None:
        stage = stage_below
        if count_devices(trainer_of(stage)["devices"]) != 1:
            raise UsageError(f"source {stage.config}: a sweep trains its sources on one device")
    epochs = [point.get("trainer.max_epochs", trainer["max_epochs"]) for point in points]
    limits = [count for count in epochs if isinstance(count, int) and count > 0]
    devices = tuple(point.get("trainer.devices", trainer["devices"]) for point in points)
    accelerators = {point.get("trainer.accelerator", trainer["accelerator"]) for point in points}
    return TrialPlan(validations or max(limits, default=UNKNOWN_VALIDATIONS), devices, accelerators != {"cpu"})


class TrialWork:
    """The work on one trial.

    Args:
        leases: The worker's leases.
        trial: The trial, leased to this worker, with its parameters.
        signals: Where signals are noted.
        plan: What all trainings of the study have in common.

    """

    def __init__(self, leases: Leases, trial: Trial, signals: SignalWatch, plan: TrialPlan) -> None:
        self.leases, self.trial, self.signals, self.plan = leases, trial, signals, plan
        self.study, self.spec = study, spec = leases.study, leases.spec
        self.point: Mapping[str, Any] = trial.user_attrs["point"]
        self.runs = TrialRuns(study, trial, spec.objectives)
        # Of a trial that is taken over: the runs of its earlier workers.
        self.run_ids: list[str] = list(trial.user_attrs.get("runs", []))
        self.metrics: list[dict[str, float]] = []
        """Of each seed that is trained, in the order of the seeds."""
        self._started = time.perf_counter()

    @cached_property
    def stage(self) -> Stage:
        """The training as a stage. It is built on first use, since an error in it is the trial's own."""
        return trial_stage(self.spec, self.point)

    def run(self) -> None:
        """Train what is left, and end the trial.

        Raises:
            Interrupted: a signal came; the trial is saved, and whoever leases it next resumes it.
            Exception: an infrastructure error; the trial is as it was.

        """
        try:
            # Cheap refusals first; then every seed, where `_train_seed` finds what is done already.
            self._fail_if_hopeless()
            self._prune_if_too_large()
            if len(self.spec.seeds) > 1:
                group = self.runs.open_group()
                # Each attribute is a record in the study's journal, which only grows.
                if self.trial.user_attrs.get("group") != group:
                    self.trial.set_user_attr("group", group)
            for seed in self.spec.seeds:
                self.signals.check()
                self.metrics.append(self._train_seed(seed))
                self._prune_by_seeds(seed)
            state, reason = COMPLETE, None
        except Interrupted:
            self.trial.set_user_attr("seconds", self._total_seconds())
            self.runs.interrupt_group()
            raise
        except PrunedError as pruned:
            state, reason = PRUNED, str(pruned)
        except Exception as error:
            if is_infrastructure_error(error):
                raise
            state, reason = FAIL, describe_error(error)
        # Not in the `try`: an error while the result is stored must not be taken for the trial's own.
        self._conclude(state, reason)

    def _fail_if_hopeless(self) -> None:
        """Fail a trial that has killed its workers, or raised the same errors, too often.

        Raises:
            UserError: with the reason.

        """
        if (reason := reason_to_give_up(self.trial)) is None:
            return
        for seed in self.spec.seeds:
            if (run := self.runs.find(seed)) is not None and run.info.status != "FINISHED":
                self._add_run(run.info.run_id)
                # Its last worker was killed, and nobody will open the run again to set its status.
                self.runs.client.set_terminated(run.info.run_id, "FAILED")
        raise UserError(reason)

    def _prune_if_too_large(self) -> None:
        """Prune a trial whose network breaks a constraint on the number of parameters, before it is trained."""
        limits = [constraint.at_most for constraint in self.spec.constraints if constraint.metric == "parameters"]
        if not limits:
            return
        # Built and counted: the number of parameters follows from the point, whatever the training makes of it.
        model = LitCLI(self.stage.arguments("full", self.spec.seeds[0])).model
        if (count := count_parameters(model)) > min(limits):
            set_constraint(self.trial, "parameters", count - min(limits))
            raise PrunedError(f"{count:,} parameters, more than {min(limits):,.0f}")

    def _prune_by_seeds(self, seed: int) -> None:
        """Report the seed's result to a pruner that compares seeds, and prune the trial if it says so."""
        if self.spec.pruner != "wilcoxon":
            return
        step, value = len(self.metrics) - 1, self.metrics[-1][self.spec.objectives[0].metric]
        # A trial that is taken over finds what was decided before, like `Reporter` within a training.
        if (reason := self.trial.user_attrs.get("pruned")) is None and not has_reported(self.trial, step):
            self.trial.report(value, step)
            if step + 1 < len(self.spec.seeds) and self.trial.should_prune():
                reason = f"after seed {seed}: {step + 1} seeds are worse than those of the best trial"
                self.trial.set_user_attr("pruned", reason)
        if reason is not None and not has_reported(self.trial, step + 1):
            raise PrunedError(reason)

    def _train_seed(self, seed: int) -> dict[str, float]:
        """Return the metrics of the training with that seed, of which what is done already is not repeated.

        Raises:
            PrunedError: it was pruned, now or before.
            UserError: it failed, or a metric of an objective or a constraint is missing or not finite.

        """
        # Before a first training there is no run to search for, which a tracking server takes some time to answer.
        found = self.runs.find(seed) if "begun" in self.trial.user_attrs else None
        if found is not None and found.info.status == "FINISHED":
            self._add_run(found.info.run_id)
            metrics, reason = dict(self.runs.client.get_run(found.info.run_id).data.metrics), None
            # A run that the pruner ended is FINISHED too: only the trial says that it was pruned. The pruner has
            # seen the first seed alone.
            if seed == self.spec.seeds[0] and self.spec.pruner != "wilcoxon":
                reason = self.trial.user_attrs.get("pruned")
        else:
            metrics, reason = self._fit(seed, found.info.run_id if found is not None else None)
        if reason is not None:
            self.metrics.append(metrics)  # for `_conclude`, which stores what the seeds have reached
            raise PrunedError(reason)
        # NaN included: a study that stored it would rank by it.
        for name in self.spec.metrics:
            if name not in metrics:
                raise UserError(f"the trial has no metric {name}{nearest(name, metrics, listed=True)}")
            check_finite(name, metrics[name])
        return metrics

    def _fit(self, seed: int, run_id: str | None) -> Outcome:
        """Train with that seed, in a new run or from the last checkpoint of the run `run_id`."""
        tags: dict[str, str] = {}
        if run_id is not None:
            # Its configuration, tags and source are in the run already.
            arguments = ["--resume", run_id]
        else:
            source_flags, tags = take_source(self.stage, "full", seed, self.signals)
            tags |= self.runs.tags(seed)
            name = self.runs.name(seed if len(self.spec.seeds) > 1 else None)
            arguments = [
                *self.stage.arguments("full", seed), *source_flags, *QUIET_FLAGS,
                "--tracking.keep_checkpoints", self.spec.keep_checkpoints,
                # Sums depend on the number of threads: the run keeps it for whoever resumes or repeats the trial.
                "--threads", str(torch.get_num_threads()),
                "--tracking.experiment", self.runs.experiment, "--tracking.name", name,
            ]  # fmt: skip
        # Before the run is created: the next worker searches for a run that this one was killed before storing.
        self.trial.set_user_attr("begun", True)
        # A pruner compares trials by the first seed alone, and works with a single objective only. Wilcoxon gets
        # the results of the seeds instead of validations, see `_prune_by_seeds`.
        reports = seed == self.spec.seeds[0] and len(self.spec.objectives) == 1
        reports = reports and self.spec.pruner != "wilcoxon"
        try:
            if self.plan.is_distributed(self.point):
                return self._fit_distributed(seed, arguments, tags, reports)
            pruned = self.trial.user_attrs.get("pruned") if reports else None
            reporter = Reporter(self.spec.objectives[0], self.trial, reports, seed, pruned, self._add_run)
            reporter.owner = self.leases.owner
            with suppress_stdout():
                result = fit(arguments, [reporter], self.signals, tags, leased=True)
            assert result is not None, "one process is rank 0, and an unfinished run has something left"
            return {**result.metrics, **reporter.measured()}, reporter.reason
        except Interrupted:
            raise
        except Exception as error:
            # A failed trial shows the run in which it failed, even if the training ended before it was reported.
            if not is_infrastructure_error(error) and (run := self.runs.find(seed)) is not None:
                self._add_run(run.info.run_id)
            raise

    def _fit_distributed(self, seed: int, arguments: list[str], tags: dict[str, str], reports: bool) -> Outcome:
        study, number = self.study.study_name, self.trial.number
        validations, owner = self.plan.validations, self.leases.owner
        job = Job(study, number, seed, arguments, tags, reports, validations, owner, time.monotonic())
        result = fit_distributed(job, self.signals)
        self._add_run(result["run"])
        return result["metrics"], result["reason"]

    def _add_run(self, run_id: str) -> None:
        """Store that the run is one of the trial's."""
        if run_id not in self.run_ids:
            self.run_ids.append(run_id)
            self.trial.set_user_attr("runs", self.run_ids)

    def _conclude(self, state: TrialState, reason: str | None) -> None:
        """Store how the trial ended, first in MLflow and then in the study."""
        check_owner(self.leases.storage, self.trial, self.leases.owner)
        objectives = [objective.metric for objective in self.spec.objectives]
        # MLflow first: a worker killed before `tell` leaves a running trial, whose next worker does all this
        # again.
        if not self.run_ids and reason is not None:
            self._add_run(self.runs.record(self.spec.seeds[0], STATES[state], reason))
        elif state == FAIL:
            self.runs.mark(self.run_ids[-1], STATES[state], reason)
        self.runs.close_group(STATES[state], reason, self.metrics)
        means = None
        if state == COMPLETE:
            means = [self._mean(metric) for metric in objectives]
            for constraint in self.spec.constraints:
                excess = self._mean(constraint.metric) - constraint.at_most
                set_constraint(self.trial, constraint.metric, excess)
        # Of each seed, also of a trial that was pruned or has failed after some of them.
        values = [[metrics.get(metric, math.nan) for metric in objectives] for metrics in self.metrics]
        self.trial.set_user_attr("values", values)
        self.trial.set_user_attr("seconds", self._total_seconds())
        if reason is not None:
            self.trial.set_user_attr("reason", reason)
        self.leases.tell(self.trial, means, state)

    def _mean(self, metric: str) -> float:
        return math.fsum(metrics[metric] for metrics in self.metrics) / len(self.metrics)

    def _total_seconds(self) -> float:
        """Return the seconds spent on the trial, by all workers that have worked on it."""
        before: float = self.trial.user_attrs.get("seconds", 0.0)
        return round(before + time.perf_counter() - self._started, 3)
