"""One trial: a training for each seed of the study, each of which is one MLflow run, and then the result.

The worker may be killed at any point. The worker that takes over the trial runs all steps again, and each step
reuses existing results: a finished run provides its metrics, an unfinished one is resumed, and a pruned training
stays pruned. `Study.tell` comes last, since it ends the trial.
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
"""Flags of every trial: no progress bar would be seen, and figures of hundreds of runs would fill a disk."""
UNKNOWN_VALIDATIONS = 100
"""Number of validations that a pruner assumes if the length of training is given in steps and was not measured."""

Outcome = tuple[dict[str, float], str | None]
"""The metrics of a training, and the reason for pruning or None."""


class PrunedError(Exception):
    """The trial ends early because it is not promising or breaks a constraint; the message gives the reason."""


@dataclass(frozen=True)
class TrialPlan:
    """Settings that all trainings of a study have in common."""

    validations: int
    """Number of validations of the longest training."""
    devices: tuple[Devices, ...]
    """`trainer.devices` of each probe point of the space; together they have all possible values."""
    may_use_gpus: bool
    """False if all trainings run on the CPU, even if there are GPUs."""

    def is_distributed(self, point: Mapping[str, Any]) -> bool:
        """True if the training of `point` takes several devices."""
        return count_devices(point.get("trainer.devices", self.devices[0])) != 1


def plan_trials(spec: Spec, validations: int | None = None) -> TrialPlan:
    """Return the common settings of the study's trainings.

    Args:
        spec: The specification.
        validations: Validations of the longest training, from `check`; if None, one per epoch is assumed.

    Raises:
        UsageError: a source, from which trainings start, needs several devices.

    """

    def trainer_of(stage: Stage) -> Mapping[str, Any]:
        trainer: Mapping[str, Any] = LitCLI(stage.arguments("full", spec.seeds[0])).config["trainer"]
        return trainer

    # They include every value of each choice and both ends of each interval, and so the longest training.
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
        signals: The signal watch of the worker.
        plan: Settings that all trainings of the study have in common.

    """

    def __init__(self, leases: Leases, trial: Trial, signals: SignalWatch, plan: TrialPlan) -> None:
        self.leases, self.trial, self.signals, self.plan = leases, trial, signals, plan
        self.study, self.spec = study, spec = leases.study, leases.spec
        self.point: Mapping[str, Any] = trial.user_attrs["point"]
        self.runs = TrialRuns(study, trial, spec.objectives)
        # Includes the runs of earlier workers of this trial.
        self.run_ids: list[str] = list(trial.user_attrs.get("runs", []))
        self.metrics: list[dict[str, float]] = []
        """The metrics of each trained seed, in the order of the seeds."""
        self._started = time.perf_counter()

    @cached_property
    def stage(self) -> Stage:
        """The training as a stage; created on first use, inside `run`, where errors count as the trial's own."""
        return trial_stage(self.spec, self.point)

    def run(self) -> None:
        """Train the remaining seeds and end the trial.

        Raises:
            Interrupted: a signal came; the trial is saved, and the next worker that leases it resumes it.
            Exception: an infrastructure error; the trial stays unfinished.

        """
        try:
            # Cheap checks first, then every seed; `_train_seed` does not repeat finished work.
            self._fail_if_hopeless()
            self._prune_if_too_large()
            if len(self.spec.seeds) > 1:
                group = self.runs.open_group()
                # Stored only once, since each write adds a record to the study's journal.
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
        # Outside the `try`, since an error while storing the result is not the trial's own.
        self._conclude(state, reason)

    def _fail_if_hopeless(self) -> None:
        """Fail a trial whose workers were killed, or that was released after errors, too often.

        Raises:
            UserError: with the reason.

        """
        if (reason := reason_to_give_up(self.trial)) is None:
            return
        for seed in self.spec.seeds:
            if (run := self.runs.find(seed)) is not None and run.info.status != "FINISHED":
                self._add_run(run.info.run_id)
                # The last worker was killed, and the run will not be opened again to set its status.
                self.runs.client.set_terminated(run.info.run_id, "FAILED")
        raise UserError(reason)

    def _prune_if_too_large(self) -> None:
        """Prune a trial whose network breaks a constraint on the number of parameters, before it is trained."""
        limits = [constraint.at_most for constraint in self.spec.constraints if constraint.metric == "parameters"]
        if not limits:
            return
        # The number of parameters depends only on the point, so the model is built to count them.
        model = LitCLI(self.stage.arguments("full", self.spec.seeds[0])).model
        if (count := count_parameters(model)) > min(limits):
            set_constraint(self.trial, "parameters", count - min(limits))
            raise PrunedError(f"{count:,} parameters, more than {min(limits):,.0f}")

    def _prune_by_seeds(self, seed: int) -> None:
        """Report the seed's result to a pruner that compares seeds, which may prune the trial."""
        if self.spec.pruner != "wilcoxon":
            return
        step, value = len(self.metrics) - 1, self.metrics[-1][self.spec.objectives[0].metric]
        # A trial that was taken over keeps an earlier decision, as in `Reporter`.
        if (reason := self.trial.user_attrs.get("pruned")) is None and not has_reported(self.trial, step):
            self.trial.report(value, step)
            if step + 1 < len(self.spec.seeds) and self.trial.should_prune():
                reason = f"after seed {seed}: {step + 1} seeds are worse than those of the best trial"
                self.trial.set_user_attr("pruned", reason)
        if reason is not None and not has_reported(self.trial, step + 1):
            raise PrunedError(reason)

    def _train_seed(self, seed: int) -> dict[str, float]:
        """Return the metrics of the training with that seed; resumes or reuses an existing run.

        Raises:
            PrunedError: the training was pruned, now or before.
            UserError: it failed, or a metric of an objective or a constraint is missing or not finite.

        """
        # Before the first training there is no run, and a search would cost a request to the tracking server.
        found = self.runs.find(seed) if "begun" in self.trial.user_attrs else None
        if found is not None and found.info.status == "FINISHED":
            self._add_run(found.info.run_id)
            metrics, reason = dict(self.runs.client.get_run(found.info.run_id).data.metrics), None
            # A run that the pruner ended is FINISHED too; only the trial's attribute shows that it was pruned. The
            # pruner acts on the first seed only.
            if seed == self.spec.seeds[0] and self.spec.pruner != "wilcoxon":
                reason = self.trial.user_attrs.get("pruned")
        else:
            metrics, reason = self._fit(seed, found.info.run_id if found is not None else None)
        if reason is not None:
            self.metrics.append(metrics)  # for `_conclude`, which stores the metrics of all trained seeds
            raise PrunedError(reason)
        # NaN is an error too, since the study would rank by it.
        for name in self.spec.metrics:
            if name not in metrics:
                raise UserError(f"the trial has no metric {name}{nearest(name, metrics, listed=True)}")
            check_finite(name, metrics[name])
        return metrics

    def _fit(self, seed: int, run_id: str | None) -> Outcome:
        """Train with that seed, in a new run or from the last checkpoint of the run `run_id`."""
        tags: dict[str, str] = {}
        if run_id is not None:
            # The run already has its configuration, tags and source.
            arguments = ["--resume", run_id]
        else:
            source_flags, tags = take_source(self.stage, "full", seed, self.signals)
            tags |= self.runs.tags(seed)
            name = self.runs.name(seed if len(self.spec.seeds) > 1 else None)
            arguments = [
                *self.stage.arguments("full", seed), *source_flags, *QUIET_FLAGS,
                "--tracking.keep_checkpoints", self.spec.keep_checkpoints,
                # Sums depend on the number of threads, so it is stored in the run for resuming or repeating the
                # trial.
                "--threads", str(torch.get_num_threads()),
                "--tracking.experiment", self.runs.experiment, "--tracking.name", name,
            ]  # fmt: skip
        # Set before the run is created, so that the next worker searches for the run if this one is killed before
        # it stores the run's id.
        self.trial.set_user_attr("begun", True)
        # A pruner compares trials by the first seed only, and works with a single objective only. The Wilcoxon
        # pruner gets the results of seeds instead of validations, see `_prune_by_seeds`.
        reports = seed == self.spec.seeds[0] and len(self.spec.objectives) == 1
        reports = reports and self.spec.pruner != "wilcoxon"
        try:
            if self.plan.is_distributed(self.point):
                result = fit_distributed(
                    Job(
                        study=self.study.study_name,
                        number=self.trial.number,
                        seed=seed,
                        arguments=arguments,
                        tags=tags,
                        reports=reports,
                        validations=self.plan.validations,
                        owner=self.leases.owner,
                        begun=time.monotonic(),
                    ),
                    self.signals,
                )
                self._add_run(result["run"])
                return result["metrics"], result["reason"]
            pruned = self.trial.user_attrs.get("pruned") if reports else None
            reporter = Reporter(self.spec.objectives[0], self.trial, reports, seed, pruned, self._add_run)
            reporter.owner = self.leases.owner
            with suppress_stdout():
                fitted = fit(arguments, [reporter], self.signals, tags, leased=True)
            assert fitted is not None, "one process is rank 0, and an unfinished run has something left"
            return {**fitted.metrics, **reporter.measured()}, reporter.reason
        except Interrupted:
            raise
        except Exception as error:
            # A failed trial refers to the run in which it failed, even if training ended before the run was
            # stored.
            if not is_infrastructure_error(error) and (run := self.runs.find(seed)) is not None:
                self._add_run(run.info.run_id)
            raise

    def _add_run(self, run_id: str) -> None:
        """Store that the run belongs to the trial."""
        if run_id not in self.run_ids:
            self.run_ids.append(run_id)
            self.trial.set_user_attr("runs", self.run_ids)

    def _conclude(self, state: TrialState, reason: str | None) -> None:
        """Store how the trial ended, first in MLflow and then in the study."""
        check_owner(self.leases.storage, self.trial, self.leases.owner)
        objectives = [objective.metric for objective in self.spec.objectives]
        # MLflow first: if the worker is killed before `tell`, the trial is still running, and its next worker
        # repeats all of this.
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
        # The values of each trained seed, also if the trial was pruned or has failed after some of them.
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
