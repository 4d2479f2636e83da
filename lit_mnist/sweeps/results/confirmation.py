"""The results of `lit-mnist sweep confirm`: a study's best points with further seeds, and which are tied."""

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
    """One of the study's best points, with its values for seeds that the search had not used."""

    number: int
    """The number of the study's trial with this point."""
    point: Mapping[str, Any]
    by_seed: Mapping[int, float]
    """The first objective for each seed."""
    summary: Summary
    """Mean over the seeds, with half its 95 % interval."""
    difference: Summary | None
    """How much worse than the best point, paired by seed; None for the best point itself."""
    p: float | None
    """The p-value of the difference, adjusted by Holm's method for the number of points."""

    @property
    def is_tied(self) -> bool:
        """True if the point does not differ significantly from the best one."""
        return self.p is not None and self.p >= 1 - CONFIDENCE


def read_confirmation(storage: BaseStorage, name: str) -> list[ConfirmedPoint]:
    """Return the confirmed points of the study, the best mean first; empty if there are none.

    Args:
        storage: Where the study is kept.
        name: The study.

    """
    confirmations = confirmation_names(storage, name)
    if not confirmations:
        return []
    main = read_summary(open_study(storage, name))
    # A confirmation's trial belongs to the study's first trial with the same point.
    numbers = {_key(point(trial)): trial.number for trial in reversed(main.complete)}
    # Several confirmations may have trained the same point with different seeds, which are combined.
    points: dict[int, Mapping[str, Any]] = {}
    values: dict[int, dict[int, float]] = {}
    for confirmation in confirmations:
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
        values: Values by candidate and seed.
        upwards: True if higher values are better.

    Returns:
        For each candidate, sorted by mean, with candidates with fewer seeds last: the candidate, its mean, how
        much worse it is than the best one, and the p-value of this difference after Holm's correction. The last
        two are None for the best candidate, and for candidates with fewer than two seeds in common with it.

    """
    sign = 1 if upwards else -1
    means = {candidate: summarise(list(by_seed.values())) for candidate, by_seed in values.items()}
    # Candidates with fewer seeds, for example after an interrupted confirmation, come last, since their means are
    # not comparable.
    most = max(map(len, values.values()), default=0)
    order = sorted(means, key=lambda candidate: (len(values[candidate]) < most, -sign * means[candidate].mean))
    if not order:
        return []
    # Paired by seed, so that effects of the seed on all candidates (split, order, weights) cancel out.
    signed = {c: {str(seed): sign * value for seed, value in values[c].items()} for c in order}
    differences = {candidate: paired(signed[order[0]], signed[candidate]) for candidate in order[1:]}
    known = [candidate for candidate in order[1:] if differences[candidate] is not None]
    # Holm's correction for the candidates that can be compared.
    adjusted = dict(zip(known, holm([p_value(d.values) for c in known if (d := differences[c])]), strict=True))
    return [(c, means[c], differences.get(c), adjusted.get(c)) for c in order]


def verdict(summary: StudySummary, confirmed: Sequence[ConfirmedPoint], with_points: bool = True) -> list[str]:
    """The confirmation as text: a line for each trial, with or without its point, then the best and the ties."""
    if not confirmed:
        return []
    metric, best = summary.objectives[0], confirmed[0]
    unused = f"{len(best.by_seed)} seeds that the search had not used"
    lines = [f"confirmed with {unused} ({metric}, trials of the study {summary.name}):"]
    for found in confirmed:
        text = f"  trial {found.number}: {show_metric(metric, found.summary.mean, found.summary.interval)}"
        if len(found.by_seed) < len(best.by_seed):
            text += f" ({len(found.by_seed)} seeds)"
        if found.difference is not None and found.p is not None:
            # Of two percentages: 90 % is not 10 % worse than 100 %, but 10 points.
            worse = show_metric(metric, found.difference.mean, found.difference.interval).replace(" %", " points")
            text += f", worse by {worse} ({'tied, ' if found.is_tied else ''}p {found.p:.2g} after Holm)"
        lines.append(f"{text}; {show_short(found.point)}" if with_points else text)
    # With too few common seeds for a test, points are treated as tied.
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
