"""What `lit-mnist sweep confirm` found: the leaders of a study with further seeds, and which of them are tied."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage

from lit_mnist.sweeps.results.plotting import show_metric
from lit_mnist.sweeps.study.storage import confirmation_names, open_study
from lit_mnist.sweeps.study.summary import StudySummary, point, read_summary, show_short
from lit_mnist.tracking.queries.statistics import CONFIDENCE, Summary, holm, p_value, paired, summarise


@dataclass(frozen=True)
class ConfirmedPoint:
    """One leader with its values for seeds that the search had not used."""

    number: int
    """The study's trial of this point."""
    point: Mapping[str, Any]
    by_seed: Mapping[int, float]
    """The first objective for each seed."""
    summary: Summary
    """Mean over the seeds with the half of its 95 % interval."""
    difference: Summary | None
    """How much worse than the best, by differences with the same seed; None for the best itself."""
    p: float | None
    """Of the difference, adjusted by Holm's method for the number of leaders."""

    @property
    def is_tied(self) -> bool:
        """True if the point cannot be told apart from the best."""
        return self.p is not None and self.p >= 1 - CONFIDENCE


def read_confirmation(storage: BaseStorage, name: str) -> list[ConfirmedPoint]:
    """Return the confirmed leaders of the study, the best mean first; empty if there are none.

    Args:
        storage: Where the study is kept.
        name: The study.

    """
    main = read_summary(open_study(storage, name))
    # A confirmation's trial belongs to the study's trial of the same point; of several to the first one.
    numbers = {_key(point(trial)): trial.number for trial in reversed(main.complete)}
    # Several confirmations may have trained the same point, each with seeds of its own: all of them count.
    points: dict[int, Mapping[str, Any]] = {}
    values: dict[int, dict[int, float]] = {}
    for confirmation in confirmation_names(storage, name):
        summary = read_summary(open_study(storage, confirmation))
        for trial in summary.complete:
            number = numbers.get(_key(point(trial)))
            if number is None:
                continue
            points[number] = point(trial)
            reached = [by_objective[0] for by_objective in trial.user_attrs["values"]]
            values.setdefault(number, {}).update(zip(summary.seeds, reached, strict=True))
    return [
        ConfirmedPoint(number, points[number], values[number], mean, difference, p)
        for number, mean, difference, p in compare(values, upwards=main.upwards[0])
    ]


def compare(
    values: Mapping[int, Mapping[int, float]], upwards: bool
) -> list[tuple[int, Summary, Summary | None, float | None]]:
    """Compare candidates with the best of them, by paired differences.

    Args:
        values: By candidate and seed.
        upwards: True if higher values are better.

    Returns:
        For each candidate, best mean first and those with fewer seeds last: itself, its mean, how much worse it
        is than the best, and the p-value of that after Holm. The last two are None for the best, and for a
        candidate that shares fewer than two seeds with it.

    """
    sign = 1 if upwards else -1
    means = {candidate: summarise(list(by_seed.values())) for candidate, by_seed in values.items()}
    # A candidate that has fewer seeds, such as that of an interrupted confirmation, may owe its mean to them.
    most = max(map(len, values.values()), default=0)
    order = sorted(means, key=lambda candidate: (len(values[candidate]) < most, -sign * means[candidate].mean))
    if not order:
        return []
    # Paired by seed: what a seed does to all candidates alike (split, order, weights) cancels out.
    signed = {c: {str(seed): sign * value for seed, value in values[c].items()} for c in order}
    differences = {candidate: paired(signed[order[0]], signed[candidate]) for candidate in order[1:]}
    known = [candidate for candidate in order[1:] if differences[candidate] is not None]
    # Holm over the candidates that can be compared at all.
    adjusted = dict(zip(known, holm([p_value(d.values) for c in known if (d := differences[c])]), strict=True))
    return [(c, means[c], differences.get(c), adjusted.get(c)) for c in order]


def verdict(summary: StudySummary, confirmed: Sequence[ConfirmedPoint]) -> list[str]:
    """The confirmation in words: a line for each leader, and at last who is surely best or tied."""
    if not confirmed:
        return []
    metric, best = summary.objectives[0], confirmed[0]
    lines = [f"confirmed with {len(best.by_seed)} seeds that the search had not used ({metric}):"]
    for found in confirmed:
        text = f"  trial {found.number}: {show_metric(metric, found.summary.mean, found.summary.interval)}"
        if len(found.by_seed) < len(best.by_seed):
            text += f" ({len(found.by_seed)} seeds)"
        if found.difference is not None and found.p is not None:
            worse = show_metric(metric, found.difference.mean, found.difference.interval)
            text += f", worse by {worse} ({'tied, ' if found.is_tied else ''}p {found.p:.2g} after Holm)"
        lines.append(f"{text}; {show_short(found.point)}")
    # Too few common seeds for a test say no more than a test that finds no difference.
    tied = [str(found.number) for found in confirmed[1:] if found.is_tied or found.p is None]
    if len(confirmed) == 1:
        return lines
    if tied:
        listed = " and ".join(tied) if len(tied) < 3 else f"{', '.join(tied[:-1])} and {tied[-1]}"
        lines.append(f"trial {best.number} has the best mean; trial {listed} cannot be told apart from it")
    else:
        lines.append(f"trial {best.number} is surely the best of these (95 %, paired by seed, Holm)")
    return lines


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
