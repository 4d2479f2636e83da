"""Verdicts of claims, and how their numbers are formatted."""

import math

import pytest

from lit_mnist.papers.report.claims import Claim, Rule, above, at_least, at_most, below, descending, within
from lit_mnist.tracking.queries.statistics import summarise

OTHERS = {"low": [1.0, 1.2], "lower": [0.5, 0.6]}
CASES: list[tuple[Rule, float, float]] = [
    (at_least(0.98), 0.98, 0.979),
    (at_most(0.2), 0.2, 0.201),
    (within(1.0, 0.05), 0.951, 0.949),
    (within(1.0, 0.05), 1.049, 1.051),
    (above("low", "lower"), 1.11, 1.09),
    (above("lower", margin=0.2), 0.76, 0.74),
    (below("low", "lower"), 0.54, 0.56),
    (descending("low", "lower"), 1.11, 1.1),
]


@pytest.mark.parametrize(("rule", "right", "wrong"), CASES, ids=lambda value: getattr(value, "text", str(value)))
def test_the_verdict_depends_on_the_number(rule: Rule, right: float, wrong: float) -> None:
    claim = Claim("stated", "number", rule)
    others = {name: summarise(values) for name, values in OTHERS.items()}
    assert claim.verdict({"number": summarise([right, right]), **others}) == "holds"
    assert claim.verdict({"number": summarise([wrong, wrong]), **others}) == "does not hold"
    assert claim.verdict({"number": summarise([math.nan, right]), **others}) == "does not hold"
    unstated = Claim("not stated", "number", None)
    assert unstated.verdict({"number": summarise([right])}) == "not stated by the paper"


def test_descending_checks_every_step() -> None:
    numbers = {"a": summarise([3.0]), "b": summarise([1.0]), "c": summarise([2.0])}
    assert not descending("b", "c").holds({name: summary.mean for name, summary in numbers.items()}, "a")


def test_the_interval_is_that_of_student() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    assert summary.mean == 2.0
    assert summary.interval == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # two degrees of freedom
    assert summarise([1.0]).interval is None


def test_numbers_are_formatted_for_tables() -> None:
    share, loss = Claim("", "", None, percent=True), Claim("", "", None)
    assert share.show(0.98765, 0.0012) == "98.77 ± 0.12 %"
    assert loss.show(0.0361234, 0.00123) == "0.03612 ± 0.00123"
    assert (share.show(None), loss.show(688106.0), loss.show(0.5, None)) == ("–", "688,106", "0.5")
