"""Tests of a number measured with several seeds: the exact sign-flip test, and how many seeds a claim needs.

Student's test is in `tracking/queries/statistics.py`, since a sweep's confirmation takes it as well.

Each test is about a *slack*: for each seed the amount by which a condition is met, negative where it is not.
Slacks of orderings are paired differences, so that the variance that all variants of a seed share cancels out.
"""

import math
from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
"""Two-sided level of every verdict: its interval has 95 %."""
FLOOR = 6
"""With fewer seeds the sign-flip test cannot reach p = 0.05: its smallest p is 2 / 2 ** seeds."""
MOST_SEEDS = 200
"""A claim that needs more seeds than this is called undecidable in practice."""


def sign_flip(slack: Sequence[float]) -> float:
    """Two-sided p value of the exact sign-flip test: is the mean of `slack` (one value per seed) 0?

    It assumes only that each value is as likely positive as negative: not that the values are normal. All 2 ** n
    signs are tried for up to 13 seeds, 9,999 random ones beyond.
    """
    from scipy.stats import permutation_test

    # A fixed generator: the random signs beyond 13 seeds give the same p, and so the same verdict, every time.
    # With a single sample, scipy's permutation type "samples" flips signs.
    found = permutation_test(
        (np.asarray(slack, dtype=float),), np.mean, permutation_type="samples", n_resamples=9999, rng=0
    )
    return float(found.pvalue)


def seeds_needed(slack: Sequence[float], level: float = ALPHA / 2) -> int | None:
    """Smallest number of seeds, more than there are, at which the one-sided p value would be at most `level`.

    Mean and spread are taken to stay what they are; the direction is that of the mean. None if more than
    `MOST_SEEDS` would be needed, or if there is no spread to go by.
    """
    from scipy.special import stdtr

    # Student's t with n seeds is effect * sqrt(n), with n - 1 degrees of freedom: the first n at which it
    # suffices.
    values = np.asarray(slack, dtype=float)
    if len(values) < 2 or not values.std():
        return None
    effect = abs(values.mean()) / values.std(ddof=1)
    for count in range(max(len(values) + 1, FLOOR), MOST_SEEDS + 1):
        if stdtr(count - 1, -effect * math.sqrt(count)) <= level:
            return count
    return None
