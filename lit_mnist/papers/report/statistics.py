"""Tests of a number measured with several seeds: Student's t and the exact sign-flip test.

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


def p_not_positive(slack: Sequence[float], strict: bool = False) -> float:
    """One-sided p value of Student's t test that the mean of `slack` (one value per seed) is not above 0.

    Equal values, such as parameter counts, have no spread to test: p is 0 or 1. A `strict` condition is not met by
    a mean of exactly 0.

    Raises:
        ValueError: a value is not finite, or there is none.

    """
    values = np.asarray(slack, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"slack must be one or more finite values, not {list(slack)}")
    if np.ptp(values) == 0:
        return 0.0 if values[0] > 0 or (values[0] == 0 and not strict) else 1.0
    # The function behind scipy.stats.ttest_1samp; importing scipy.stats takes three times as long.
    from scipy.special import stdtr

    count = len(values)
    return float(stdtr(count - 1, -values.mean() / (values.std(ddof=1) / math.sqrt(count))))


def sign_flip(slack: Sequence[float]) -> float:
    """Two-sided p value of the exact sign-flip test: is the mean of `slack` (one value per seed) 0?

    It assumes only that each value is as likely positive as negative: not that the values are normal. All 2 ** n
    signs are tried for up to 13 seeds, 9,999 random ones beyond.
    """
    from scipy.stats import permutation_test

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

    values = np.asarray(slack, dtype=float)
    if len(values) < 2 or not values.std():
        return None
    effect = abs(values.mean()) / values.std(ddof=1)
    for count in range(max(len(values) + 1, FLOOR), MOST_SEEDS + 1):
        if stdtr(count - 1, -effect * math.sqrt(count)) <= level:
            return count
    return None
