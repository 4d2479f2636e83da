"""The statistical tests behind the verdicts, compared with numbers computed by hand."""

import math

import pytest

from lit_mnist.papers.report.statistics import FLOOR, seeds_needed, sign_flip
from lit_mnist.tracking.queries.statistics import holm, p_not_positive


def test_the_p_value_is_that_of_students_t_test() -> None:
    # Mean 2, standard error 1 / sqrt(3), so t = 3.4641 with 2 degrees of freedom. Its distribution function is
    # 1/2 + t / (2 sqrt(2 + t²)) = 0.96291.
    assert p_not_positive([1.0, 2.0, 3.0]) == pytest.approx(0.5 - math.sqrt(12) / (2 * math.sqrt(14)), abs=1e-6)
    assert p_not_positive([-1.0, -2.0, -3.0]) == pytest.approx(0.96291, abs=1e-5)
    assert p_not_positive([-1.0, 1.0]) == 0.5


def test_equal_values_need_no_test() -> None:
    assert [p_not_positive([value] * 3) for value in (1.0, 0.0, -1.0)] == [0.0, 0.0, 1.0]
    assert p_not_positive([0.0] * 3, strict=True) == 1.0
    for broken in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            p_not_positive(broken)


def test_the_sign_flip_test_is_exact() -> None:
    # Of the 8 signs of (1, 2, 3), 2 give a sum of at least 6 in size; of those of (-1, 2, 3), 4 give at least 4:
    # ±(1 + 2 + 3) and ±(-1 + 2 + 3).
    assert sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip([0.1, 0.2, 0.3, 0.4, 0.5]) > 0.05 >= sign_flip([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == 2 / 2**FLOOR


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    # 3 × 0.01, then 2 × 0.02, then 1 × 0.03, which may not be below the one before.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_number_of_seeds_that_would_decide() -> None:
    # Mean 1 and standard deviation 1: a paired t-test at 5 % with effect size 1 and power 80 % needs 10.
    assert seeds_needed([[0.0, 1.0, 2.0]]) == 10
    assert seeds_needed([[10.0, 11.0, 12.0]]) == FLOOR
    assert all(seeds_needed([part]) is None for part in ([-1.0, 1.0], [0.0, -1.0, -2.0], [1.0], [1.0, 1.0]))
    # An equivalence has to pass on both sides, and so needs more, here for a difference of 0 and a margin of 1.
    assert seeds_needed([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]) == 13
