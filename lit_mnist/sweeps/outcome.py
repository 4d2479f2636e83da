"""What a study has come to so far, read from what it keeps; nothing here trains."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.sweeps.constraints import constraints_of

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Outcome:
    """A study as it is now."""

    name: str
    goals: tuple[str, ...]
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
        """The best trial, or the Pareto set of several goals by the first; empty while there is none.

        Trials that break a constraint do not count.
        """
        allowed = [trial for trial in self.complete if is_allowed(trial)]
        front = [trial for trial in allowed if not any(self._beats(other, trial) for other in allowed)]
        front.sort(key=lambda trial: (self.cost(trial)[0], trial.number))
        return front if len(self.goals) > 1 else front[:1]

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


def read_outcome(study: optuna.Study) -> Outcome:
    """The study as it is now."""
    attrs = study.user_attrs
    stored = attrs["stored"]
    return Outcome(
        study.study_name,
        tuple(goal["metric"] for goal in stored["goals"]),
        tuple(direction == StudyDirection.MAXIMIZE for direction in study.directions),
        tuple(stored["seeds"]),
        attrs["trials"],
        tuple(stored.get("points", ())),
        tuple(study.get_trials(deepcopy=False)),
    )


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
