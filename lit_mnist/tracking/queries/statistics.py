"""Statistics of numbers measured with several seeds: mean, confidence interval, paired difference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964
"""Number of standard deviations that include 95 % of a normal distribution."""


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
    # A mean over the finite values only would hide a diverged training.
    if not all(map(math.isfinite, values)):
        return Summary(tuple(values), math.nan, None)
    # fsum is exact, so that the order of the seeds does not matter.
    mean = math.fsum(values) / count
    if count < 2:
        return Summary(tuple(values), mean, None)
    # The function behind scipy.stats.t.ppf; importing scipy.stats takes three times as long.
    from scipy.special import stdtrit

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    # The two-sided interval leaves 2.5 % on each side.
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Summary(tuple(values), mean, quantile * math.sqrt(variance / count))


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> Summary | None:
    """Return the mean of `first[seed] - second[seed]` over the seeds that both have.

    Pairing removes the variance of the seed itself, such as an easy validation split.

    Args:
        first: Values by seed.
        second: Values by seed.

    Returns:
        The mean and its interval; None with fewer than two common seeds, since one difference has no interval.

    """
    shared = [seed for seed in first if seed in second]
    return summarise([first[seed] - second[seed] for seed in shared]) if len(shared) > 1 else None


def p_not_positive(values: Sequence[float], strict: bool = False) -> float:
    """One-sided p value of Student's t test that the mean of `values` (one per seed) is not above 0.

    Equal values, such as parameter counts, have no spread, and p is 0 or 1. With `strict`, a mean of exactly 0
    does not satisfy the condition.

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
    # Twice the smaller tail; `strict`, because a difference of 0 is no evidence for either side.
    smaller = min(p_not_positive(differences, True), p_not_positive([-value for value in differences], True))
    return min(1.0, 2 * smaller)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in the given order, adjusted by Holm's method for multiple tests."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    # The smallest p is multiplied by n, the next by n - 1, and so on; adjusted values never decrease.
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share that was measured on `count` images.

    Unlike the share ± 1.96 standard errors, it stays between 0 and 1 and is also accurate near 1, where accuracies
    are.
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
    # Newcombe 1998, method 10: for each share, the side of Wilson's interval towards the other share.
    margin = math.hypot(high - wilson(high, count)[0], wilson(low, count)[1] - low)
    return high - low > margin


def show_mean(mean: float, interval: float | None, sign: str = "") -> str:
    """Return a mean with half its interval, rounded to two significant digits of the interval: `0.783 ± 0.052`.

    Without an interval, or if it is 0 or infinite, the mean has four significant digits, and a count has all
    digits.

    Args:
        mean: The mean.
        interval: Half the width of its confidence interval; None if unknown.
        sign: "+" to show the sign of positive numbers.

    """
    if interval is None or not 1e-9 * abs(mean) < interval < math.inf:
        is_count = math.isfinite(mean) and mean == round(mean) and 1000 <= abs(mean) < 1e15
        return format(mean, f"{sign},.0f" if is_count else f"{sign}#.4g").rstrip(".")
    # Two significant figures of the interval.
    digits = max(0, 1 - math.floor(math.log10(interval)))
    return f"{mean:{sign}.{digits}f} ± {interval:.{digits}f}"
