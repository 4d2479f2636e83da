"""Statistics of a number measured with several seeds: mean, confidence interval, paired difference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964
"""Standard deviations within which 95 % of a normal distribution lie."""


@dataclass(frozen=True)
class Summary:
    """A number measured with several seeds."""

    values: tuple[float, ...]
    mean: float
    interval: float | None
    """Half the width of Student's 95 % confidence interval of the mean; None for a single value."""


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean of `values`, at least one, and its confidence interval; NaN if one of them is not finite."""
    count = len(values)
    # A mean over the finite ones would hide a training that diverged.
    if not all(map(math.isfinite, values)):
        return Summary(tuple(values), math.nan, None)
    # fsum: exact, so that the order of the seeds changes nothing.
    mean = math.fsum(values) / count
    if count < 2:
        return Summary(tuple(values), mean, None)
    # The function behind scipy.stats.t.ppf; importing scipy.stats as well takes three times as long.
    from scipy.special import stdtrit

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    # The two-sided interval leaves 2.5 % on each side.
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Summary(tuple(values), mean, quantile * math.sqrt(variance / count))


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> Summary | None:
    """Return the mean of `first[seed] - second[seed]` over the seeds that both have.

    Pairing removes the variance that comes from the seed itself, such as an easy validation split.

    Args:
        first: Seed to value.
        second: Likewise.

    Returns:
        None if fewer than two seeds are in both: one difference has no interval.

    """
    shared = [seed for seed in first if seed in second]
    return summarise([first[seed] - second[seed] for seed in shared]) if len(shared) > 1 else None


def p_not_positive(values: Sequence[float], strict: bool = False) -> float:
    """One-sided p value of Student's t test that the mean of `values` (one per seed) is not above 0.

    Equal values, such as parameter counts, have no spread to test: p is 0 or 1. A `strict` condition is not met by
    a mean of exactly 0.

    Raises:
        ValueError: a value is not finite, or there is none.

    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"Student's test takes one or more finite values, not {list(values)}")
    if min(values) == max(values):
        return 0.0 if values[0] > 0 or (values[0] == 0 and not strict) else 1.0
    from scipy.special import stdtr  # see `summarise`

    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return float(stdtr(count - 1, -mean / math.sqrt(variance / count)))


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p value of Student's paired test that the mean of the differences is 0."""
    # Twice the smaller tail; `strict`, because no difference at all is no evidence for either side.
    smaller = min(p_not_positive(differences, True), p_not_positive([-value for value in differences], True))
    return min(1.0, 2 * smaller)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, adjusted by Holm's method: all of them hold at once."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    # The smallest p counts n times, the next n - 1 times, and none less than the one before it.
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share that was measured on `count` images.

    Unlike the share ± 1.96 standard errors it stays within 0 and 1, and is right near both, where accuracies are.
    """
    square = NORMAL_QUANTILE**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = (
        NORMAL_QUANTILE / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def shares_differ(first: float, second: float, count: int) -> bool:
    """True if Newcombe's 95 % interval of the difference of two shares of `count` images each excludes 0."""
    high, low = max(first, second), min(first, second)
    # Newcombe 1998, method 10: of each share the side of Wilson's interval that lies between the two.
    margin = math.hypot(high - wilson(high, count)[0], wilson(low, count)[1] - low)
    return high - low > margin


def show_mean(mean: float, interval: float | None, sign: str = "") -> str:
    """Return a mean with half its interval, both to two figures of the interval, such as `0.783 ± 0.052`.

    Without an interval, or with one that is 0 or infinite, the mean has four figures; a count has all of them.

    Args:
        mean: The mean.
        interval: Half the width of its confidence interval; None if unknown.
        sign: "+" to show the sign of positive numbers, too.

    """
    if interval is None or not 1e-9 * abs(mean) < interval < math.inf:
        is_count = math.isfinite(mean) and mean == round(mean) and 1000 <= abs(mean) < 1e15
        return format(mean, f"{sign},.0f" if is_count else f"{sign}#.4g").rstrip(".")
    # Two significant figures of the interval.
    digits = max(0, 1 - math.floor(math.log10(interval)))
    return f"{mean:{sign}.{digits}f} ± {interval:.{digits}f}"
