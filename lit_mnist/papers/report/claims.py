"""What a paper says, and the rule by which our numbers decide whether it holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from lit_mnist.tracking.queries.statistics import Summary

Verdict = Literal["holds", "does not hold", "not stated by the paper"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "not stated by the paper")


class Rule(Protocol):
    """Decides from the means over the seeds."""

    def holds(self, means: Mapping[str, float], key: str) -> bool:
        """Whether the number `key` is as the rule wants it."""


@dataclass(frozen=True)
class AtLeast:
    """The number is `bound` or more."""

    bound: float

    def holds(self, means: Mapping[str, float], key: str) -> bool:
        """Whether it is."""
        return means[key] >= self.bound

    def __str__(self) -> str:
        return f"at least {self.bound:g}"


@dataclass(frozen=True)
class AtMost:
    """The number is `bound` or less."""

    bound: float

    def holds(self, means: Mapping[str, float], key: str) -> bool:
        """Whether it is."""
        return means[key] <= self.bound

    def __str__(self) -> str:
        return f"at most {self.bound:g}"


@dataclass(frozen=True)
class Within:
    """The number is `value`, give or take `margin`."""

    value: float
    margin: float

    def holds(self, means: Mapping[str, float], key: str) -> bool:
        """Whether it is."""
        return abs(means[key] - self.value) <= self.margin

    def __str__(self) -> str:
        return f"within {self.margin:g} of {self.value:g}"


@dataclass(frozen=True)
class Above:
    """The number is larger than another, or than each of several, by more than `margin`."""

    others: tuple[str, ...]
    margin: float = 0.0

    def holds(self, means: Mapping[str, float], key: str) -> bool:
        """Whether it is."""
        return all(means[key] > means[other] + self.margin for other in self.others)

    def __str__(self) -> str:
        by = f" by more than {self.margin:g}" if self.margin else ""
        return f"above {', '.join(self.others)}{by}"


@dataclass(frozen=True)
class Below:
    """The number is smaller than each of several others."""

    others: tuple[str, ...]

    def holds(self, means: Mapping[str, float], key: str) -> bool:
        """Whether it is."""
        return all(means[key] < means[other] for other in self.others)

    def __str__(self) -> str:
        return f"below {', '.join(self.others)}"


@dataclass(frozen=True)
class Descending:
    """The number, and the others after it, each lie below the one before."""

    others: tuple[str, ...]

    def holds(self, means: Mapping[str, float], key: str) -> bool:
        """Whether they do."""
        line = [means[name] for name in (key, *self.others)]
        return all(a > b for a, b in pairwise(line))

    def __str__(self) -> str:
        return f"above {' above '.join(self.others)}"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, or what it leaves out, beside the number that we measure for it."""

    text: str
    key: str
    """Which of the experiment's numbers."""
    rule: Rule | None
    """None where the paper states nothing to compare with."""
    paper: float | None = None
    """The paper's own figure."""
    percent: bool = False
    """Whether it is a share, shown in percent."""

    def verdict(self, summaries: Mapping[str, Summary]) -> Verdict:
        """What the numbers say; a mean that is not a number supports nothing."""
        if self.rule is None:
            return "not stated by the paper"
        means = {name: summary.mean for name, summary in summaries.items()}
        return "holds" if self.rule.holds(means, self.key) else "does not hold"

    def show(self, value: float | None) -> str:
        """The value as it stands in a table."""
        if value is None:
            return "–"
        return f"{100 * value:.2f} %" if self.percent else _number(value)

    def show_summary(self, mean: float, interval: float | None) -> str:
        """Mean and interval as they stand in a table."""
        if interval is None:
            return self.show(mean)
        return (
            f"{100 * mean:.2f} ± {100 * interval:.2f} %"
            if self.percent
            else f"{_number(mean)} ± {_number(interval)}"
        )


def _number(value: float) -> str:
    """Four significant figures, and whole numbers in full."""
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 1 else f"{value:.4g}"
