"""Claims of the papers, and the decision by measured numbers whether they hold."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lit_mnist.papers.report.statistics import ALPHA, FLOOR, MOST_SEEDS, seeds_needed, sign_flip
from lit_mnist.tracking.queries.statistics import holm, p_not_positive, show_mean, summarise

Verdict = Literal[
    "holds", "contradicted", "undecided", "not tested at the paper's length", "not comparable", "ours"
]
Row = Mapping[str, float]
"""The numbers of one seed, by name."""


# A rule returns by how much a condition is met (its slack), since the tests need a number for each seed.
@dataclass(frozen=True)
class Rule:
    """A condition on an experiment's numbers. It consists of parts, which must all be met."""

    text: str
    """The condition in words, with `{bound}` and `{margin}`."""
    slack: Callable[[Row, str], list[float]]
    """Returns by how much each part is met (negative if not), from one seed's numbers and the claim's key."""
    strict: bool = False
    """True if a slack of exactly 0 does not meet the condition."""
    exclusive: bool = False
    """True for an equivalence, whose two parts are the distances from its bounds. At most one of them can fail, so
    no correction for several parts is needed."""
    bound: float = 0.0
    """A claim about a share shows it in percent."""
    margin: float = 0.0
    """A claim about a share shows it in points, since percent would look relative."""


def at_least(bound: float) -> Rule:
    """The number is `bound` or more."""
    return Rule("at least {bound}", lambda row, key: [row[key] - bound], bound=bound)


def at_most(bound: float) -> Rule:
    """The number is `bound` or less."""
    return Rule("at most {bound}", lambda row, key: [bound - row[key]], bound=bound)


def within(value: float, margin: float) -> Rule:
    """The number differs from `value` by at most `margin`: an equivalence, decided by two one-sided tests."""
    return Rule(
        "within {margin} of {bound}",
        lambda row, key: [row[key] - (value - margin), value + margin - row[key]],
        exclusive=True,  # a number cannot lie below and above the range at once
        bound=value,
        margin=margin,
    )


def close_to(other: str, margin: float) -> Rule:
    """The number differs from the number `other` of the same seed by at most `margin`: an equivalence."""
    return Rule(
        f"within {{margin}} of {other}",
        lambda row, key: [row[key] - row[other] + margin, row[other] - row[key] + margin],
        exclusive=True,
        margin=margin,
    )


def above(*others: str) -> Rule:
    """The number is larger than each of the `others` of the same seed."""
    return Rule(
        f"above {', '.join(others)}", lambda row, key: [row[key] - row[other] for other in others], strict=True
    )


def below(*others: str) -> Rule:
    """The number is smaller than each of the `others` of the same seed."""
    return Rule(
        f"below {', '.join(others)}", lambda row, key: [row[other] - row[key] for other in others], strict=True
    )


def descending(*others: str) -> Rule:
    """The number and the `others`, in this order, are strictly descending."""
    return Rule(
        f"above {' above '.join(others)}",
        lambda row, key: [a - b for a, b in pairwise(row[name] for name in (key, *others))],
        strict=True,
    )


@dataclass(frozen=True)
class Claim:
    """A statement of a paper or an additional number of this project, with the name of the measured number."""

    text: str
    key: str
    """Name of the number, which the experiment measures."""
    rule: Rule | None = None
    """None for an additional number, about which the paper makes no claim."""
    paper: float | None = None
    """The paper's own number."""
    percent: bool = False
    """True if the number is a share, shown in percent."""
    margin: str = ""
    """The reason for the rule's bound; empty if the bound is the paper's own."""
    not_comparable: str = ""
    """Missing information in the paper that makes a verdict impossible; empty if there is a verdict."""
    exact: bool = False
    """True if the number does not depend on the seed, such as a count of parameters: one seed decides."""

    def show_rule(self) -> str | None:
        """The rule in words, with its bounds in the unit of the claim's number; None without a rule."""
        if self.rule is None:
            return None
        bound, margin = self.rule.bound, self.rule.margin
        if self.percent:
            points = "point" if margin == 0.01 else "points"
            return self.rule.text.format(bound=f"{100 * bound:g} %", margin=f"{100 * margin:g} {points}")
        return self.rule.text.format(bound=f"{bound:g}", margin=f"{margin:g}")

    def show(self, value: float | None, interval: float | None = None) -> str:
        """Format a value, with its interval if there is one, for a table."""
        if value is None:
            return "–"
        interval = None if self.exact else interval
        if self.percent:
            numbers = [value] if interval is None else [value, interval]
            # Two decimals, or as many as a smaller interval needs for one significant digit.
            decimals = 2
            if interval and 0 < 100 * interval < 0.005:
                decimals = min(6, -math.floor(math.log10(100 * interval)))
            return " ± ".join(f"{100 * number:.{decimals}f}" for number in numbers) + " %"
        if interval is None and math.isfinite(value) and value == round(value):
            return f"{value:,.0f}"  # counts in full
        return show_mean(value, interval)


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim, with its statistics."""

    verdict: Verdict
    why: str = ""
    """The reason, or what would decide the claim; for an ordering its closest part, for an equivalence the
    difference."""
    p: float | None = None
    """Two-sided p value, corrected for all tested claims of the experiment (Holm)."""
    p_sign_flip: float | None = None
    """p value of the exact sign-flip test, not corrected; its smallest value is 2 / 2 ** seeds."""
    seeds_needed: int | None = None
    """For an undecided claim: total number of seeds that would probably decide it, see `seeds_needed`."""


def judge(claims: Sequence[Claim], rows: Mapping[int, Row], cut: str = "", fewest: int = FLOOR) -> list[Judgement]:
    """Decide the claims of an experiment; the result has one judgement for each claim, in order.

    A claim holds if the 95 % interval of its slack is entirely above 0, and is contradicted if it is entirely
    below 0. The level is corrected for the number of tested claims. With six or more seeds, the exact sign-flip
    test must agree, so that no verdict depends only on the assumption of normally distributed values.

    Args:
        claims: The claims of one experiment.
        rows: The numbers by seed. A seed without a claim's number does not count for that claim.
        cut: Description of what was shortened; then nothing is tested.
        fewest: Minimum number of seeds for a verdict.

    """
    judgements: dict[int, Judgement] = {}
    # The slacks over the seeds, for each part of each claim that can be tested.
    parts: dict[int, list[tuple[float, ...]]] = {}
    for i, claim in enumerate(claims):
        slacks = {seed: slack for seed, row in rows.items() if (slack := _slack(claim, row))}
        if (untested := _judge_untested(claim, slacks, cut, fewest)) is not None:
            judgements[i] = untested
        else:
            parts[i] = list(zip(*slacks.values(), strict=True))

    # Both directions are tested, so that a claim can also be contradicted: twice the smaller p.
    one_sided = {i: _p_values(claims[i], part) for i, part in parts.items()}
    two_sided = [min(1.0, 2 * min(p)) for p in one_sided.values()]
    # Holm's correction includes only the tested claims.
    for i, raw, p in zip(parts, two_sided, holm(two_sided), strict=True):
        met, unmet = one_sided[i]
        judgements[i] = _decide(claims[i], parts[i], met <= unmet, p, p / raw if raw else 1.0)
    return [judgements[i] for i in range(len(claims))]


def _slack(claim: Claim, row: Row) -> list[float]:
    """The slack of each part of the claim's rule; empty without a rule, or if the seed lacks a number."""
    try:
        return [] if claim.rule is None else claim.rule.slack(row, claim.key)
    except KeyError:
        return []


def _judge_untested(claim: Claim, slacks: Mapping[int, list[float]], cut: str, fewest: int) -> Judgement | None:
    """The judgement of a claim that cannot be tested, with the reason; None if it can be."""
    if claim.not_comparable:
        return Judgement("not comparable", claim.not_comparable)
    if claim.rule is None:
        return Judgement("ours")
    if cut:
        return Judgement("not tested at the paper's length", cut)
    # A diverged training has no slack, and leaving out its seed would favour the claim.
    if broken := [str(seed) for seed, slack in slacks.items() if not all(map(math.isfinite, slack))]:
        return Judgement("undecided", f"not a finite number with seed {', '.join(broken)}")
    if not slacks:
        return Judgement("undecided", f"{claim.key} was not measured")
    count = len(slacks)
    if count < fewest and not claim.exact:
        return Judgement("undecided", f"at least {fewest - count} more seeds are needed", seeds_needed=fewest)
    # A part without spread has an interval of 0, with which Student's test would always decide. But accuracies on
    # few images may be equal by chance.
    constant = any(len(set(part)) == 1 for part in zip(*slacks.values(), strict=True))
    if constant and count < FLOOR and not claim.exact:
        more = f"all seeds give the same value: at least {FLOOR - count} more are needed"
        return Judgement("undecided", more, seeds_needed=FLOOR)
    return None


def _p_values(claim: Claim, parts: Sequence[Sequence[float]]) -> tuple[float, float]:
    """One-sided p values against "some part is not met" and against "all parts are met"."""
    assert claim.rule is not None
    strict = claim.rule.strict
    # An intersection-union test: all parts have to pass at the full level, so the largest p needs no correction.
    met = max(p_not_positive(part, strict) for part in parts)
    # The smallest p of all parts is multiplied by their number. A slack of 0 satisfies a condition that is not
    # strict, so the opposite condition is strict.
    unmet = min(p_not_positive([-value for value in part], not strict) for part in parts)
    return met, min(1.0, unmet * (1 if claim.rule.exclusive else len(parts)))


def _decide(claim: Claim, parts: Sequence[Sequence[float]], meets: bool, p: float, factor: float) -> Judgement:
    """The judgement of a tested claim; `factor` is Holm's correction, which `p` includes."""
    assert claim.rule is not None
    # A correction for selecting one of several parts is needed if that part fails, but not if all parts are met.
    strict, correction = claim.rule.strict, 1 if meets or claim.rule.exclusive else len(parts)
    # The part to which p belongs: the least certain one if all are met, otherwise the one that most clearly fails.
    if meets:
        closest = max(parts, key=lambda part: p_not_positive(part, strict))
    else:
        closest = min(parts, key=lambda part: p_not_positive([-value for value in part], not strict))
    # The reason for the table. For an equivalence the difference itself, since the distance from one of its two
    # bounds would be misread as the difference; otherwise the distance of the deciding part from its bound.
    count = len(closest)
    what, values = "closest part", closest
    if claim.rule.exclusive:
        lower, upper = parts
        what, values = "difference", [(a - b) / 2 for a, b in zip(lower, upper, strict=True)]
    difference = summarise(values)
    why = ""
    if (len(parts) > 1 or strict) and not claim.exact:
        scale, unit = (100, " points") if claim.percent else (1, "")
        why = f"{what}: {scale * difference.mean:+.3g}"
        why += f" ± {scale * difference.interval:.2g}" if difference.interval is not None else ""
        why += unit
    # For "holds" all parts must be met, while a single failing part contradicts the claim.
    flips = None if count < 2 else max(map(sign_flip, parts)) if meets else sign_flip(closest)
    # If all slacks are 0, there are no signs to flip.
    agrees = claim.exact or count < FLOOR or not any(closest) or (flips is not None and flips <= ALPHA)
    if p <= ALPHA and agrees:
        return Judgement("holds" if meets else "contradicted", why, p, flips)
    # Undecided: find the number of seeds that would probably show that all parts are met, or that this one is not.
    shown = parts if meets else [[-value for value in closest]]
    in_all = seeds_needed(shown, ALPHA / 2 / factor / correction)
    if in_all is None:
        more = f"more than {MOST_SEEDS} seeds would be needed, or another margin"
        return Judgement("undecided", "; ".join(filter(None, (why, more))), p, flips)
    missing = in_all - count
    more = f"{missing} more seed{'s' if missing > 1 else ''} would probably decide it"
    return Judgement("undecided", "; ".join(filter(None, (why, more))), p, flips, in_all)
