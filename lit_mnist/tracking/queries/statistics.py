"""A number measured with several seeds: its mean, and how sure that is."""

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
    """Half the width of Student's 95 % interval of the mean; None for a single seed."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean over the seeds, with its interval."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Summary(tuple(values), mean, None)
    from scipy.special import stdtrit  # what scipy.stats.t.ppf asks, for a third of its import

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Summary(tuple(values), mean, quantile * math.sqrt(variance / count))


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> Summary | None:
    """`first` minus `second`, seed by seed, which takes out what the seeds have in common.

    Args:
        first: A value for each seed.
        second: Likewise.

    Returns:
        None unless both have two seeds in common, for fewer give no interval.

    """
    shared = [seed for seed in first if seed in second]
    return summarise([first[seed] - second[seed] for seed in shared]) if len(shared) > 1 else None
