"""Tests of numbers measured with several seeds: the exact sign-flip test, and how many seeds a claim needs.

Student's test is in `tracking/queries/statistics.py`, since a sweep's confirmation uses it too.

Each test is about the *slack*: for each seed, the amount by which a condition is met, negative if it is not met.
The slacks of orderings are paired differences, so that the variance that all variants share for a seed cancels
out.
"""

import math
from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
"""Two-sided significance level of every verdict, for 95 % intervals."""
FLOOR = 6
"""Number of seeds below which the sign-flip test cannot reach p = 0.05: its smallest p is 2 / 2 ** seeds."""
POWER = 0.8
"""Probability with which `seeds_needed` seeds decide a claim."""
MOST_SEEDS = 200
"""Number of seeds above which a claim counts as undecidable in practice."""


def sign_flip(slack: Sequence[float]) -> float:
    """Two-sided p value of the exact sign-flip test: is the mean of `slack` (one value per seed) 0?

    It assumes that positive and negative values are equally likely, but not that the values are normal. For up to
    13 seeds all 2 ** n combinations of signs are used, for more seeds 9,999 random ones.
    """
    from scipy.stats import permutation_test

    # A fixed seed, so that random signs always give the same p, and so the same verdict.
    # With a single sample, scipy's permutation type "samples" flips signs.
    found = permutation_test(
        (np.asarray(slack, dtype=float),), np.mean, permutation_type="samples", n_resamples=9999, rng=0
    )
    return float(found.pvalue)


def seeds_needed(parts: Sequence[Sequence[float]], level: float = ALPHA / 2) -> int | None:
    """Smallest number of seeds, above the current one, that probably show that every part is positive.

    This is the usual power analysis of Student's one-sided test, without the sign-flip test: mean and spread of a
    part are taken as the true ones, all seeds as new ones, and "probably" is `POWER`.

    Args:
        parts: The slacks of one or more conditions, each with one value per seed.
        level: Each part's p value has to be at most this.

    Returns:
        None if more than `MOST_SEEDS` would be needed, or if there is no spread or only one seed.

    """
    from scipy.stats import nct, t

    count = len(parts[0])
    if count < 2 or not any(np.std(part) for part in parts):
        return None
    effects = [np.mean(part) / max(float(np.std(part, ddof=1)), 1e-12) for part in parts]
    for n in range(max(count + 1, FLOOR), MOST_SEEDS + 1):
        # If the true effect is not 0, Student's t has a noncentral distribution.
        missed = [nct.cdf(t.isf(level, n - 1), n - 1, effect * math.sqrt(n)) for effect in effects]
        # All parts are shown at least with this probability, however they depend on each other.
        if 1 - sum(missed) >= POWER:
            return n
    return None
