"""What a study has come to so far, read from what it keeps; nothing here trains."""

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.sweeps.search.optuna_private import constraints_of

UNREPORTED = "validations"
"""A trial's attribute: validations by seed, of seeds that report no intermediate values."""
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class StudySummary:
    """A study as it is now."""

    name: str
    objectives: tuple[str, ...]
    """Metrics, in the order of a trial's values."""
    upwards: tuple[bool, ...]
    """Which of them are better when higher."""
    seeds: tuple[int, ...]
    budget: int
    """How many trials it is to have."""
    given: tuple[Mapping[str, Any], ...]
    """Points that were to be tried first."""
    trials: tuple[FrozenTrial, ...]

    @property
    def complete(self) -> list[FrozenTrial]:
        """Trials with values, in order."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that nobody will work on again."""
        return [trial for trial in self.trials if trial.state.is_finished()]

    def count(self, state: TrialState) -> int:
        """How many trials are in that state."""
        return Counter(trial.state for trial in self.trials)[state]

    def counts(self) -> str:
        """How many trials are in which state, in words."""
        return (
            ", ".join(f"{self.count(state)} {word}" for state, word in STATES.items() if self.count(state))
            or "none yet"
        )

    def best(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto set of several objectives by the first; empty while there is none.

        Trials that break a constraint do not count.
        """
        allowed = [trial for trial in self.complete if is_allowed(trial)]
        front = [trial for trial in allowed if not any(self._beats(other, trial) for other in allowed)]
        front.sort(key=lambda trial: (self.cost(trial)[0], trial.number))
        return front if len(self.objectives) > 1 else front[:1]

    def best_by(self, index: int) -> FrozenTrial | None:
        """The trial that is best by one goal; None while there is none."""
        allowed = [trial for trial in self.complete if is_allowed(trial)]
        return min(allowed, key=lambda trial: self.cost(trial)[index], default=None)

    def cost(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Its values, turned so that less is better."""
        return tuple(-value if up else value for up, value in zip(self.upwards, trial.values, strict=True))

    def _beats(self, one: FrozenTrial, other: FrozenTrial) -> bool:
        first, second = self.cost(one), self.cost(other)
        return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def read_summary(study: optuna.Study) -> StudySummary:
    """The study as it is now."""
    attrs = study.user_attrs
    stored = attrs["stored"]
    return StudySummary(
        study.study_name,
        tuple(goal["metric"] for goal in stored["goals"]),
        tuple(direction == StudyDirection.MAXIMIZE for direction in study.directions),
        tuple(stored["seeds"]),
        attrs["trials"],
        tuple(stored.get("points", ())),
        tuple(study.get_trials(deepcopy=False)),
    )


def seconds_left(
    trials: Sequence[FrozenTrial], budget: int, workers: int, until_stop: float = math.inf
) -> float | None:
    """An estimate of the seconds until the study is finished; None while no trial has shown how long one takes.

    Trials that are at work are counted by the share of their validations that is left. Trials that wait go to
    whichever worker is free first, each as a whole: 5 trials of a minute take 2 workers 3 minutes.

    Args:
        trials: All trials of the study.
        budget: How many it is to have.
        workers: How many work on it, on all machines.
        until_stop: Seconds after which no new trial is started.

    """
    done = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    took = [trial.user_attrs["seconds"] for trial in done if "seconds" in trial.user_attrs]
    if not took:
        return None
    each = sum(took) / len(took)
    counts = [count_validations(trial) for trial in done if "seconds" in trial.user_attrs]
    usual = sum(counts) / len(counts)
    begun = [trial for trial in trials if trial.state == TrialState.RUNNING]
    shares = [max(0.0, 1 - count_validations(trial) / usual) if usual else 1.0 for trial in begun]
    free_at = [0.0] * max(workers, 1)  # a heap
    for share in sorted(shares, reverse=True):
        heapq.heapreplace(free_at, free_at[0] + share * each)
    for _ in range(budget - len(trials)):
        if free_at[0] >= until_stop:
            break
        heapq.heapreplace(free_at, free_at[0] + each)
    return max(free_at)


def count_validations(trial: FrozenTrial) -> int:
    """How many validations the trial has behind it, those that are not reported to a pruner included.

    Later seeds and studies with several objectives do not report:
    `Reporter` counts their validations in an attribute.
    """
    unreported: dict[str, int] = trial.user_attrs.get(UNREPORTED, {})
    return len(trial.intermediate_values) + sum(unreported.values())


def is_allowed(trial: FrozenTrial) -> bool:
    """Whether the trial keeps to every constraint."""
    return all(value <= 0 for value in constraints_of(trial).values())


def point(trial: FrozenTrial) -> dict[str, Any]:
    """What the trial was to try, by the names of the command line; empty before it was asked."""
    found: dict[str, Any] = trial.user_attrs.get("point", {})
    return found


def runs(trial: FrozenTrial) -> Sequence[str]:
    """The ids of its MLflow runs, in the order of the study's seeds."""
    found: list[str] = trial.user_attrs.get("runs", [])
    return found


def show_point(values: Mapping[str, Any]) -> str:
    """A point in one line."""
    return "  ".join(f"{name} {show(value)}" for name, value in values.items()) or "–"


def show(value: Any) -> str:
    """A value as it is read: numbers to four figures."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
