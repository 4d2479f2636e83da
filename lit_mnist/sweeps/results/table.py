"""A study's trials as a table."""

import json
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from lit_mnist.sweeps.study.summary import STATES, StudySummary, is_allowed, point, runs
from lit_mnist.tracking.queries.statistics import summarise


def rows(found: StudySummary) -> list[dict[str, Any]]:
    """A row for each trial, all with the same columns; what is not known is None."""
    names = dict.fromkeys(name for trial in found.trials for name in point(trial))
    mixed = {name for name in names if _is_mixed([point(trial).get(name) for trial in found.trials])}
    return [_row(found, trial, list(names), mixed) for trial in found.trials]


def _row(found: StudySummary, trial: FrozenTrial, names: Sequence[str], mixed: set[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"number": trial.number, "state": STATES[trial.state]}
    for i, goal in enumerate(found.objectives):
        row |= _values(found, trial, i, goal)
    tried = point(trial)
    row |= {name: _cell(tried.get(name), name in mixed) for name in names}
    return row | {
        "allowed": is_allowed(trial),
        "seeds": " ".join(map(str, found.seeds)),
        "runs": " ".join(runs(trial)),
        "seconds": trial.user_attrs.get("seconds"),
        "reason": trial.user_attrs.get("reason"),
        "start": trial.datetime_start,
        "end": trial.datetime_complete,
    }


def _values(found: StudySummary, trial: FrozenTrial, i: int, goal: str) -> dict[str, Any]:
    """The value by the goal's name; over several seeds also its interval and each seed's own."""
    values: dict[str, Any] = {goal: trial.values[i] if trial.values else None}
    if len(found.seeds) == 1:
        return values
    by_seed = [seed[i] for seed in trial.user_attrs.get("values", [])]
    values[f"{goal}/interval"] = summarise(by_seed).interval if by_seed else None
    for n, seed in enumerate(found.seeds):
        values[f"{goal}/seed_{seed}"] = by_seed[n] if n < len(by_seed) else None
    return values


def _is_mixed(values: Sequence[Any]) -> bool:
    """Whether the values are of kinds that have no column in common."""
    kinds = {float if type(value) is int else type(value) for value in values if value is not None}
    return len(kinds) > 1 or list in kinds


def _cell(value: Any, as_text: bool) -> Any:
    return json.dumps(value) if as_text and value is not None else value
