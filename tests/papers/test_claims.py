"""The six verdicts, and how a claim's numbers are formatted."""

import math
from collections.abc import Sequence

import pytest

from lit_mnist.papers.report.claims import (
    Claim,
    Judgement,
    Rule,
    above,
    at_least,
    at_most,
    below,
    close_to,
    descending,
    judge,
    within,
)
from lit_mnist.tracking.queries.statistics import summarise

SPREAD = (-0.01, 0.0, 0.01, -0.005, 0.005, 0.0)
"""Deviations of six seeds from their mean."""
OTHERS = {"low": 1.0, "lower": 0.5}
CASES: list[tuple[Rule, float, float, float]] = [
    (at_least(0.98), 1.0, 0.96, 0.981),
    (at_most(0.2), 0.18, 0.22, 0.199),
    (within(1.0, 0.05), 1.0, 1.1, 1.049),
    (within(1.0, 0.05), 1.02, 0.9, 0.949),
    (close_to("low", 0.1), 1.05, 1.2, 1.1),
    (above("low", "lower"), 1.1, 0.9, 1.001),
    (below("low", "lower"), 0.4, 0.6, 0.499),
    (descending("low", "lower"), 1.1, 0.9, 1.001),
]
"""A rule, and means with which it holds, is contradicted, and is too close to decide."""


def numbers_by_seed(mean: float, spread: Sequence[float] = SPREAD, **others: float) -> dict[int, dict[str, float]]:
    """What each seed measured: `number`, which is the mean plus the seed's deviation, and the others."""
    return {seed: {"number": mean + each, **OTHERS, **others} for seed, each in enumerate(spread)}


def judge_one(rule: Rule | None, numbers: dict[int, dict[str, float]], cut: str = "", **claim: str) -> Judgement:
    """The judgement of a single claim about `number`."""
    (judgement,) = judge([Claim("stated", "number", rule, **claim)], numbers, cut)  # type: ignore[arg-type]
    return judgement


@pytest.mark.parametrize(("rule", "right", "wrong", "close"), CASES, ids=lambda v: getattr(v, "text", str(v)))
def test_the_verdict_depends_on_the_interval(rule: Rule, right: float, wrong: float, close: float) -> None:
    assert judge_one(rule, numbers_by_seed(right)).verdict == "holds"
    assert judge_one(rule, numbers_by_seed(wrong)).verdict == "contradicted"
    undecided = judge_one(rule, numbers_by_seed(close))
    assert undecided.verdict == "undecided" and "more" in undecided.why
    # The same means with a spread a thousand times as wide decide nothing.
    assert judge_one(rule, numbers_by_seed(right, [1000 * each for each in SPREAD])).verdict == "undecided"
    assert judge_one(rule, numbers_by_seed(wrong, [1000 * each for each in SPREAD])).verdict == "undecided"


def test_an_undecided_claim_says_how_many_more_seeds_would_decide_it() -> None:
    # Mean and standard deviation are 1, see `test_the_number_of_seeds_that_would_decide`.
    measured = {seed: {"number": float(seed)} for seed in range(3)}
    claim = Claim("", "number", at_least(0.0))
    (alone,) = judge([claim], measured, fewest=3)
    assert (alone.why, alone.seeds_needed) == ("7 more seeds would probably decide it", 10)
    # Each of two claims needs p = 0.0125 on one side, and so more seeds.
    assert [judged.seeds_needed for judged in judge([claim, claim], measured, fewest=3)] == [13, 13]


def test_a_claim_that_is_not_tested_has_a_reason() -> None:
    rule = at_least(0.0)
    short = judge_one(rule, numbers_by_seed(1.0), cut="2 epochs instead of 10")
    assert (short.verdict, short.why) == ("not tested at the paper's length", "2 epochs instead of 10")
    assert judge_one(None, numbers_by_seed(1.0)).verdict == "ours"
    unnamed = judge_one(rule, numbers_by_seed(1.0), not_comparable="which network?")
    assert (unnamed.verdict, unnamed.why) == ("not comparable", "which network?")
    assert judge_one(None, numbers_by_seed(1.0), cut="x", not_comparable="which?").verdict == "not comparable"
    broken = judge_one(rule, {**numbers_by_seed(1.0), 7: {"number": math.nan}})
    assert (broken.verdict, broken.why) == ("undecided", "not a finite number with seed 7")
    assert "number was not measured" in judge_one(rule, {0: {}}).why


def test_a_single_seed_decides_only_an_exact_count() -> None:
    single = judge_one(at_least(0.0), numbers_by_seed(1.0, [0.0]))
    assert single.verdict == "undecided" and single.seeds_needed == 6 and "at least 5 more" in single.why
    (count,) = judge([Claim("", "number", within(100, 0), exact=True)], numbers_by_seed(100.0, [0.0]))
    assert count.verdict == "holds"
    (count,) = judge([Claim("", "number", within(100, 0), exact=True)], numbers_by_seed(101.0, [0.0]))
    assert count.verdict == "contradicted"


def test_the_rule_of_a_share_is_in_percent() -> None:
    shares = [at_least(0.975), within(0.5, 0.475), close_to("low", 0.01), above("low")]
    shown = [
        "at least 97.5 %", "within 47.5 points of 50 %", "within 1 point of low", "above low",
    ]  # fmt: skip
    assert [Claim("", "number", rule, percent=True).show_rule() for rule in shares] == shown
    assert Claim("", "number", at_most(0.0903)).show_rule() == "at most 0.0903"
    assert Claim("", "number", within(1.0, 0.25)).show_rule() == "within 0.25 of 1"
    assert Claim("", "number").show_rule() is None


def test_orderings_are_paired_over_seeds() -> None:
    """Seeds differ by 1, the variants of one seed by 0.1: only paired differences are significant."""
    paired = {seed: {"a": seed + 0.1 + 0.001 * seed, "b": float(seed)} for seed in range(6)}
    (judgement,) = judge([Claim("", "a", above("b"))], paired)
    assert judgement.verdict == "holds" and judgement.why == "closest part: +0.102 ± 0.002"
    assert judgement.p_sign_flip == 2 / 64
    (share,) = judge([Claim("", "a", above("b"), percent=True)], paired)
    assert share.why == "closest part: +10.2 ± 0.2 points"
    crossed = {seed: {"a": paired[5 - seed]["a"], "b": paired[seed]["b"]} for seed in range(6)}
    (judgement,) = judge([Claim("", "a", above("b"))], crossed)
    assert judgement.verdict == "undecided"


def test_an_equivalence_shows_the_difference_and_not_the_distance_from_its_bounds() -> None:
    measured = {seed: {"a": 0.5 + each, "b": 0.51} for seed, each in enumerate(SPREAD)}
    judgements = judge(
        [Claim("", "a", close_to("b", 0.1), percent=True), Claim("", "a", within(0.6, 0.05))], measured
    )
    assert [judged.verdict for judged in judgements] == ["holds", "contradicted"]
    assert [judged.why for judged in judgements] == ["difference: -1 ± 0.74 points", "difference: -0.1 ± 0.0074"]


def test_an_ordering_needs_every_part_and_ignores_seeds_without_a_number() -> None:
    numbers = {seed: {"a": 3.0 + each, "b": 1.0, "c": 2.0} for seed, each in enumerate(SPREAD)}
    (judgement,) = judge([Claim("", "a", descending("b", "c"))], numbers)
    assert judgement.verdict == "contradicted" and "-1" in judgement.why
    (judgement,) = judge([Claim("", "a", above("b"))], {**numbers, 9: {"a": -100.0}})
    assert judgement.verdict == "holds"


def test_claims_of_one_experiment_are_corrected_for_their_number() -> None:
    # t = 3 for six seeds: p = 0.030 for a single claim, more than 0.05 for the least certain of two or more.
    values = [0.1 * v for v in (-0.2, 0.2, 0.5, 0.6, 0.4, 0.5)]
    measured = {seed: {"number": value} for seed, value in enumerate(values)}
    claims = [Claim(str(i), "number", at_least(0.0)) for i in range(3)]
    alone, together = judge(claims[:1], measured), judge(claims, measured)
    assert alone[0].p is not None and together[0].p == pytest.approx(3 * alone[0].p)


def test_with_six_or_more_seeds_the_sign_flip_test_must_agree() -> None:
    values = [3.0, 3.1, 2.9, 3.0, 3.05, -0.4]
    judgement = judge_one(at_least(0.0), {seed: {"number": value} for seed, value in enumerate(values)})
    assert judgement.p is not None and judgement.p < 0.05 < (judgement.p_sign_flip or 0)
    assert judgement.verdict == "undecided"


def test_the_interval_is_students_t_interval() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    assert summary.mean == 2.0
    assert summary.interval == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # two degrees of freedom
    assert summarise([1.0]).interval is None


def test_numbers_are_formatted_for_tables() -> None:
    share, loss, count = Claim("", "", percent=True), Claim("", ""), Claim("", "", exact=True)
    assert share.show(0.98765, 0.0012) == "98.77 ± 0.12 %"
    assert share.show(0.0000812, 0.0000123) == "0.008 ± 0.001 %"
    assert loss.show(0.0361234, 0.00123) == "0.0361 ± 0.0012"
    assert (share.show(None), loss.show(688106.0), loss.show(0.5, None)) == ("–", "688,106", "0.5000")
    assert count.show(688106.0, 0.0) == "688,106"


def test_an_uncertain_part_does_not_hide_one_that_certainly_fails() -> None:
    """The first part fails by much and uncertainly, the second one by little and for certain."""
    numbers = {
        seed: {"a": 0.0, "noisy": 1.0 + 9.0 * (-1) ** seed, "certain": 0.5 + 0.001 * seed} for seed in range(8)
    }
    [judgement] = judge([Claim("", "a", above("noisy", "certain"))], numbers)
    assert judgement.verdict == "contradicted" and judgement.why.startswith("closest part: -0.5")


def test_few_seeds_with_the_same_value_decide_nothing() -> None:
    claim = Claim("", "acc", at_least(0.5))
    [judgement] = judge([claim], {0: {"acc": 0.75}, 1: {"acc": 0.75}}, fewest=2)
    assert judgement.verdict == "undecided" and "the same value" in judgement.why


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_can_be_shown(value: float) -> None:
    assert Claim("", "loss").show(value, value) == str(value)
    assert Claim("", "acc", percent=True).show(value, value) == f"{value} ± {value} %"
    assert math.isnan(summarise([1.0, value, -value]).mean)


def test_few_seeds_have_a_verdict_only_if_the_experiment_permits_it() -> None:
    claim, measured = Claim("", "acc", at_least(0.5)), {0: {"acc": 0.75}, 1: {"acc": 0.76}, 2: {"acc": 0.77}}
    [judgement] = judge([claim], measured)
    assert judgement.verdict == "undecided" and judgement.why == "at least 3 more seeds are needed"
    [judgement] = judge([claim], measured, fewest=3)
    assert judgement.verdict == "holds"
