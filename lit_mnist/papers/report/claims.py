"""Claims of the papers, and the rules by which measured numbers decide whether they hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lit_mnist.tracking.queries.statistics import Summary

Verdict = Literal["holds", "does not hold", "not stated by the paper"]


@dataclass(frozen=True)
class Rule:
    """A condition on an experiment's numbers."""

    text: str
    holds: Callable[[Mapping[str, float], str], bool]
    """From the means over the seeds by number, and the claim's own number: True if the condition is met.

    A mean that is NaN meets no condition, since every comparison with it is false.
    """


def at_least(bound: float) -> Rule:
    """The number is `bound` or more."""
    return Rule(f"at least {bound:g}", lambda means, key: means[key] >= bound)


def at_most(bound: float) -> Rule:
    """The number is `bound` or less."""
    return Rule(f"at most {bound:g}", lambda means, key: means[key] <= bound)


def within(value: float, margin: float) -> Rule:
    """The number differs from `value` by at most `margin`."""
    return Rule(f"within {margin:g} of {value:g}", lambda means, key: abs(means[key] - value) <= margin)


def above(*others: str, margin: float = 0.0) -> Rule:
    """The number is larger than each of the `others` by more than `margin`."""
    by = f" by more than {margin:g}" if margin else ""
    return Rule(
        f"above {', '.join(others)}{by}",
        lambda means, key: all(means[key] > means[other] + margin for other in others),
    )


def below(*others: str) -> Rule:
    """The number is smaller than each of the `others`."""
    return Rule(
        f"below {', '.join(others)}", lambda means, key: all(means[key] < means[other] for other in others)
    )


def descending(*others: str) -> Rule:
    """The number and the `others`, in this order, each lie below the one before."""

    def holds(means: Mapping[str, float], key: str) -> bool:
        return all(a > b for a, b in pairwise(means[name] for name in (key, *others)))

    return Rule(f"above {' above '.join(others)}", holds)


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, or something it leaves open, and the number that we measure for it."""

    text: str
    key: str
    """Name of the number, one of those that the experiment measures."""
    rule: Rule | None
    """None if the paper states nothing to compare with."""
    paper: float | None = None
    """The paper's own number."""
    percent: bool = False
    """True if the number is a share, shown in percent."""

    def verdict(self, summaries: Mapping[str, Summary]) -> Verdict:
        """Decide from the means over the seeds."""
        if self.rule is None:
            return "not stated by the paper"
        means = {name: summary.mean for name, summary in summaries.items()}
        return "holds" if self.rule.holds(means, self.key) else "does not hold"

    def show(self, value: float | None, interval: float | None = None) -> str:
        """Format a value, with its interval if there is one, for a table."""
        if value is None:
            return "–"
        numbers = [value] if interval is None else [value, interval]
        if self.percent:
            return " ± ".join(f"{100 * number:.2f}" for number in numbers) + " %"
        # Whole numbers, such as parameter counts, in full; others with four significant digits.
        return " ± ".join(f"{n:,.0f}" if n == round(n) and abs(n) >= 1 else f"{n:.4g}" for n in numbers)
