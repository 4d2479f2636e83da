"""Statistics of a number measured with several seeds: mean, confidence interval, paired difference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A number measured with several seeds."""

    values: tuple[float, ...]
    mean: float
    interval: float | None
    """Half the width of Student's 95 % confidence interval of the mean; None for a single value."""


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean of `values`, at least one, and its confidence interval."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Summary(tuple(values), mean, None)
    # The function behind scipy.stats.t.ppf; importing scipy.stats as well takes three times as long.
    from scipy.special import stdtrit

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
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
