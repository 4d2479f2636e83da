"""A read-only snapshot of a study: its trials by state, the best trials, an estimate of the time left."""

import heapq
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.sweeps.search.optuna_private import constraints_of
from lit_mnist.sweeps.study.storage import STORED, storage_option
from lit_mnist.tracking.queries.statistics import show_mean, summarise

UNREPORTED = "validations"
"""Trial attribute: number of validations by seed, for seeds whose values are not reported to the pruner."""
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "waiting",
}
"""Names of the states of trials, for messages and stored summaries."""


@dataclass(frozen=True)
class StudySummary:
    """A study at one moment."""

    name: str
    arguments: str
    """The name, quoted for a shell, with the option for the storage if a command on the study needs one."""
    objectives: tuple[str, ...]
    """The metrics that are optimised, in the order of a trial's values."""
    upwards: tuple[bool, ...]
    """For each objective, True if higher values are better."""
    seeds: tuple[int, ...]
    """Every point is trained once with each of these seeds."""
    budget: int
    """The total number of trials."""
    given: tuple[Mapping[str, Any], ...]
    """The points in the specification, which are tried first."""
    steps_are_seeds: bool
    """True if a trial's intermediate values are the results of successive seeds instead of validations."""
    trials: tuple[FrozenTrial, ...]
    """All trials, by number."""

    @property
    def complete(self) -> list[FrozenTrial]:
        """The trials that have values, by number."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def finished(self) -> list[FrozenTrial]:
        """The trials that have ended: complete, pruned or failed."""
        return [trial for trial in self.trials if trial.state.is_finished()]

    def count(self, state: TrialState) -> int:
        """Return how many trials are in the state."""
        return Counter(trial.state for trial in self.trials)[state]

    def counts(self) -> str:
        """Return the number of trials in each state, in words such as "3 complete, 1 failed"."""
        counts = Counter(trial.state for trial in self.trials)
        return (
            ", ".join(f"{counts[state]} {word}" for state, word in STATES.items() if counts[state]) or "none yet"
        )

    def best(self) -> list[FrozenTrial]:
        """Return the best trial; with several objectives the Pareto front, sorted by the first objective.

        Only trials that satisfy every constraint count. The list is empty while there is none.
        """
        # A trial is on the front if no other is at least as good in every objective and better in one.
        costs = {trial.number: self.cost(trial) for trial in self.complete if is_allowed(trial)}

        def is_dominated(cost: tuple[float, ...]) -> bool:
            return any(
                other != cost and all(a <= b for a, b in zip(other, cost, strict=True)) for other in costs.values()
            )

        allowed = [trial for trial in self.complete if trial.number in costs]
        front = [trial for trial in allowed if not is_dominated(costs[trial.number])]
        front.sort(key=lambda trial: (costs[trial.number][0], trial.number))
        # With a single objective the front has all trials with the best value; the first one is returned.
        return front if len(self.objectives) > 1 else front[:1]

    def best_by(self, index: int) -> FrozenTrial | None:
        """Return the trial with the best value of the objective `index`; None if there is none yet."""
        allowed = [trial for trial in self.complete if is_allowed(trial)]
        return min(allowed, key=lambda trial: self.cost(trial)[index], default=None)

    def value(self, trial: FrozenTrial) -> float | None:
        """Return the trial's first objective: its result, or the last value it reported before it was pruned.

        None for trials without either, or if the value is not finite.
        """
        if trial.state == TrialState.COMPLETE:
            value = trial.values[0]
        elif trial.state == TrialState.PRUNED and (reported := trial.intermediate_values):
            value = (
                math.fsum(reported.values()) / len(reported) if self.steps_are_seeds else reported[max(reported)]
            )
        else:
            return None
        return value if math.isfinite(value) else None

    def interval(self, trial: FrozenTrial, index: int = 0) -> float | None:
        """Return half the 95 % confidence interval of an objective's mean; None if the trial has one seed."""
        if trial.state != TrialState.COMPLETE:
            return None
        values = [objectives[index] for objectives in trial.user_attrs.get("values", [])]
        return summarise(values).interval if values else None

    def cost(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Return the trial's values with their signs changed where needed, so that less is better."""
        return tuple(-value if up else value for up, value in zip(self.upwards, trial.values, strict=True))


def read_summary(study: optuna.Study) -> StudySummary:
    """Read the study from its storage."""
    attributes = study.user_attrs
    # Only from the study, since the specification file may have been removed or changed.
    stored = attributes[STORED]
    return StudySummary(
        name=study.study_name,
        arguments=f"{shlex.quote(study.study_name)}{storage_option(study)}",
        objectives=tuple(objective["metric"] for objective in stored["goals"]),
        upwards=tuple(direction == StudyDirection.MAXIMIZE for direction in study.directions),
        seeds=tuple(stored["seeds"]),
        budget=attributes["trials"],
        given=tuple(stored.get("points", ())),
        # The Wilcoxon pruner compares seeds; all others compare validations.
        steps_are_seeds=stored.get("pruner") == "wilcoxon",
        trials=tuple(study.get_trials(deepcopy=False)),
    )


def seconds_left(
    trials: Sequence[FrozenTrial], budget: int, workers: int, until_stop: float = math.inf
) -> float | None:
    """Estimate the seconds until the study is finished; None before the first trial has ended.

    The remaining share of a running trial is estimated by its number of validations. Each further trial is
    assigned to the worker that is free first: 5 trials of a minute take 2 workers 3 minutes.

    Args:
        trials: All trials of the study.
        budget: The total number of trials.
        workers: Number of workers on all machines.
        until_stop: Seconds after which no new trial is started.

    """
    done = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    # Pruned trials are included, since future trials will be pruned at a similar rate.
    took = [trial.user_attrs["seconds"] for trial in done if "seconds" in trial.user_attrs]
    if not took:
        return None
    mean_seconds = sum(took) / len(took)
    counts = [count_validations(trial) for trial in done if "seconds" in trial.user_attrs]
    mean_count = sum(counts) / len(counts)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    # The remaining parts of the running trials, as shares of an average trial.
    shares = [max(0.0, 1 - count_validations(trial) / mean_count) if mean_count else 1.0 for trial in running]
    free_at = [0.0] * max(workers, 1)  # a heap: when each worker is free, in seconds from now
    for share in sorted(shares, reverse=True):
        # The longest remaining trial goes to the worker that is free first.
        heapq.heapreplace(free_at, free_at[0] + share * mean_seconds)
    for _ in range(budget - len(trials)):
        if free_at[0] >= until_stop:
            break
        heapq.heapreplace(free_at, free_at[0] + mean_seconds)
    return max(free_at)


def count_validations(trial: FrozenTrial) -> int:
    """Return how many validations the trial has done, over all its seeds.

    Values are reported to the pruner only for the first seed, and only in studies with a single objective.
    `Reporter` counts all other validations in the attribute UNREPORTED.
    """
    unreported: dict[str, int] = trial.user_attrs.get(UNREPORTED, {})
    return len(trial.intermediate_values) + sum(unreported.values())


def is_allowed(trial: FrozenTrial) -> bool:
    """True if the trial satisfies every constraint."""
    return all(value <= 0 for value in constraints_of(trial).values())


def point(trial: FrozenTrial) -> dict[str, Any]:
    """Return the trial's hyperparameters by their command-line names; empty until they are suggested."""
    found: dict[str, Any] = trial.user_attrs.get("point", {})
    return found


def runs(trial: FrozenTrial) -> Sequence[str]:
    """Return the ids of the trial's MLflow runs, in the order of the study's seeds."""
    found: list[str] = trial.user_attrs.get("runs", [])
    return found


def show_short(values: Mapping[str, Any]) -> str:
    """Return a point as one line, with names without their prefixes such as `model.`."""
    return ", ".join(f"{name.rpartition('.')[2]} {show(value)}" for name, value in values.items())


def show_values(summary: StudySummary, trial: FrozenTrial) -> str:
    """Return a complete trial's values by metric, each with its interval if several seeds were trained."""
    return ", ".join(
        f"{metric} {show_mean(value, summary.interval(trial, i))}"
        for i, (metric, value) in enumerate(zip(summary.objectives, trial.values, strict=True))
    )


def show_point(values: Mapping[str, Any]) -> str:
    """Return a point as one line."""
    return ", ".join(f"{name} {show(value)}" for name, value in values.items()) or "–"


def show(value: Any) -> str:
    """Return a value as text, floating-point numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
