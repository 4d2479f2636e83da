"""A verdict follows from the numbers, and flips with them."""

import math

import pytest

from lit_mnist.papers.report.claims import Above, AtLeast, AtMost, Below, Claim, Descending, Rule, Within
from lit_mnist.tracking.queries.statistics import summarise

OTHERS = {"low": [1.0, 1.2], "lower": [0.5, 0.6]}
CASES: list[tuple[Rule, float, float]] = [
    (AtLeast(0.98), 0.98, 0.979),
    (AtMost(0.2), 0.2, 0.201),
    (Within(1.0, 0.05), 0.951, 0.949),
    (Within(1.0, 0.05), 1.049, 1.051),
    (Above(("low", "lower")), 1.11, 1.09),
    (Above(("lower",), margin=0.2), 0.76, 0.74),
    (Below(("low", "lower")), 0.54, 0.56),
    (Descending(("low", "lower")), 1.11, 1.1),
]


@pytest.mark.parametrize(("rule", "right", "wrong"), CASES, ids=lambda value: str(value))
def test_a_verdict_flips_when_its_number_is_made_to(rule: Rule, right: float, wrong: float) -> None:
    claim = Claim("it is so", "number", rule)
    others = {name: summarise(values) for name, values in OTHERS.items()}
    assert claim.verdict({"number": summarise([right, right]), **others}) == "holds"
    assert claim.verdict({"number": summarise([wrong, wrong]), **others}) == "does not hold"
    assert claim.verdict({"number": summarise([math.nan, right]), **others}) == "does not hold"
    unstated = Claim("nothing is stated", "number", None)
    assert unstated.verdict({"number": summarise([right])}) == "not stated by the paper"


def test_descending_looks_at_every_step() -> None:
    numbers = {"a": summarise([3.0]), "b": summarise([1.0]), "c": summarise([2.0])}
    assert not Descending(("b", "c")).holds({name: summary.mean for name, summary in numbers.items()}, "a")


def test_the_interval_is_students() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    assert summary.mean == 2.0
    assert summary.interval == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # two degrees of freedom
    assert summarise([1.0]).interval is None


def test_numbers_as_they_stand_in_a_table() -> None:
    share, loss = Claim("", "", None, percent=True), Claim("", "", None)
    assert share.show_summary(0.98765, 0.0012) == "98.77 ± 0.12 %"
    assert loss.show_summary(0.0361234, 0.00123) == "0.03612 ± 0.00123"
    assert (share.show(None), loss.show(688106.0), loss.show_summary(0.5, None)) == ("–", "688,106", "0.5")
