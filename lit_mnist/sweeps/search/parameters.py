"""The parameters of a search space: a number, a choice, or a list of layer sizes.

Each is a pydantic model of its YAML, and corresponds to one or more `Dimension`s, which are parameters of Optuna:
`draw` converts Optuna's suggestions for them to a value, and `encode` converts a value to suggestions.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.strict_model import StrictModel

Plain = bool | int | float | str | None | list[Any]
"""A value of a flag of `fit`."""
Suggestion = bool | int | float | str | None
"""A value as stored by Optuna, with lists as JSON."""
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Dimension:
    """One parameter of an Optuna trial."""

    name: str
    distribution: Distribution
    grid_points: tuple[Suggestion, ...] | None = None
    """The values that a grid tries; None for an interval without `step` and `points`."""
    branches: bool = False
    """True if each value gives a different model, which has to be checked before a sweep starts."""


Ask = Callable[[Dimension], Any]
"""Returns the suggestion for a dimension."""


def is_number(value: Any) -> bool:
    """True for an integer or a float, but not for a bool, which Python treats as an integer."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_suggestion(value: Any) -> Suggestion:
    """The value as stored by Optuna."""
    # Lists as JSON, since Optuna (4.4 to 5.0) supports only plain values as choices.
    return json.dumps(value) if isinstance(value, list) else value


def is_same(a: Any, b: Any) -> bool:
    """True if the values are equal; unlike in Python, true and 1 are different."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def unique(points: Iterable[Mapping[str, Plain]]) -> list[dict[str, Plain]]:
    """The points without duplicates, in the original order."""
    return list({json.dumps(point, sort_keys=True): dict(point) for point in points}.values())


def _check_factors(factors: dict[str, Any]) -> dict[str, Any]:
    for name, factor in factors.items():
        if not is_number(factor):
            raise ValueError(f"expected a factor for {name}, not {factor!r}")
    return factors


# ---- The three kinds of parameters; each has `dimensions`, `draw` and `encode` ----
class _Parameter(StrictModel):
    """Base of all kinds of parameters."""

    when: dict[str, Any] = Field(default={})
    """Conditions: other parameters, each with the value or the list of values for which this parameter applies."""
    also: Annotated[dict[str, Any], AfterValidator(_check_factors)] = Field(default={})
    """Other fields that are set too, each to this parameter's value times the factor."""

    def conditions(self) -> dict[str, list[Plain]]:
        """The values of other parameters for which this parameter applies."""
        return {name: values if isinstance(values, list) else [values] for name, values in self.when.items()}

    def applies(self, point: Mapping[str, Plain]) -> bool:
        """True if the parameters drawn so far meet its conditions."""
        # A parameter that does not apply has no value, and so does not satisfy a condition.
        return all(
            name in point and any(is_same(value, point[name]) for value in values)
            for name, values in self.conditions().items()
        )


class Number(_Parameter):
    """A number in an interval: `{low: 0.001, high: 1, log: true}`."""

    low: float
    high: float
    log: bool = False
    """True to search the logarithm."""
    # The key is `int` in YAML; an attribute of that name would hide the type used below.
    whole: bool = Field(default=False, alias="int")
    step: float | None = None
    points: (
        Annotated[
            Annotated[int, Tag("int")] | Annotated[list[float], Tag("list")],
            Discriminator(lambda value: "list" if isinstance(value, list) else "int"),
        ]
        | None
    ) = None
    """The values of a grid: a list, or a number of evenly spaced values."""

    @model_validator(mode="after")
    def _check(self) -> "Number":
        # Checked here, since Optuna's errors would come with the first trial and without the name of the key.
        low, high, step, points = self.low, self.high, self.step, self.points
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low {low:g} must be below high {high:g}")
        if self.whole:
            listed = points if isinstance(points, list) else []
            for number in (low, high, step or 1.0, *listed):
                if not number.is_integer():
                    raise ValueError(f"expected an integer, not {number:g}")
        # The logarithm needs positive numbers, and steps need a scale on which they are even.
        if self.log and low <= 0:
            raise ValueError(f"low {low:g} must be above 0")
        if step is not None:
            if self.log:
                raise ValueError("step has no place on a logarithmic scale: leave out step or log")
            if not 0 < step < math.inf:
                raise ValueError(f"step {step:g} must be above 0")
            count = (high - low) / step
            # With a tolerance, since 0.3 / 0.1 is 2.9999999999999996.
            if abs(count - round(count)) > 1e-8 * max(1.0, count):
                last = low + step * math.floor(count)
                raise ValueError(f"steps of {step:g} from {low:g} miss high {high:g}; the last is {last:g}")
        # `grid_points` divides by points - 1.
        if isinstance(points, int) and points < 2:
            raise ValueError(f"points {points} must be at least 2")
        if isinstance(points, list) and not (
            points and low <= min(points) and max(points) <= high and len(set(points)) == len(points)
        ):
            raise ValueError(f"points {points} must be different values in [{low:g}, {high:g}]")
        return self

    @property
    def distribution(self) -> FloatDistribution | IntDistribution:
        """The interval as a distribution of Optuna."""
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    @property
    def grid_points(self) -> tuple[Suggestion, ...] | None:
        """The values of a grid, from `points` or `step`; None if neither is given."""
        low, high, points = self.low, self.high, self.points
        if isinstance(points, list):
            values = list(points)
        elif points is not None:
            # Evenly spaced: equal ratios on a logarithmic axis, equal differences on a linear one.
            shares = [i / (points - 1) for i in range(points)]
            values = [low * (high / low) ** s if self.log else low + (high - low) * s for s in shares]
        elif (step := self.distribution.step) is not None:
            values = [low + i * step for i in range(round((high - low) / step) + 1)]
        else:
            return None
        # Rounded to 12 digits, so that 3 * 0.1 is 0.3. Integers may coincide after rounding.
        return tuple(dict.fromkeys(round(v) if self.whole else float(f"{v:.12g}") for v in values))

    def dimensions(self, name: str) -> list[Dimension]:
        """The parameter's dimensions, all there may be."""
        return [Dimension(name, self.distribution, self.grid_points)]

    def draw(self, name: str, ask: Ask) -> Plain:
        """The parameter's value, from what `ask` returns for its dimensions."""
        value: Plain = ask(self.dimensions(name)[0])
        return value

    def encode(self, name: str, value: Any) -> dict[str, Suggestion]:
        """The suggestions, by dimension, from which `draw` would make `value`.

        Raises:
            UsageError: the parameter cannot have this value.

        """
        if not is_number(value) or (self.whole and not isinstance(value, int)):
            raise UsageError(f"{name}: expected {'an integer' if self.whole else 'a number'}, not {value!r}")
        if not self.low <= value <= self.high:
            raise UsageError(f"{name}: {value} must lie in [{self.low:g}, {self.high:g}]")
        # YAML reads `1` as an integer, which is also a valid float.
        return {name: value if self.whole else float(value)}


class Choice(_Parameter):
    """One of several values: `{choices: [sgd, adam]}`."""

    choices: list[Any]

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: list[Any]) -> list[Any]:
        if not choices:
            raise ValueError("there is none")
        for i, value in enumerate(choices):
            if isinstance(value, Mapping):
                raise ValueError(f"expected plain values or lists, not {value!r}")
            # A repeated choice would be tried twice as often. Compared as Optuna does, for which true equals 1.
            if any(as_suggestion(value) == as_suggestion(other) for other in choices[:i]):
                raise ValueError(f"{value!r} is given twice")
        return choices

    @model_validator(mode="after")
    def _check_also(self) -> "Choice":
        if self.also and not all(map(is_number, self.choices)):
            raise ValueError("also goes with numbers alone")
        return self

    def dimensions(self, name: str) -> list[Dimension]:
        """The parameter's dimensions, all there may be."""
        choices = tuple(map(as_suggestion, self.choices))
        return [Dimension(name, CategoricalDistribution(choices), choices, branches=True)]

    def draw(self, name: str, ask: Ask) -> Plain:
        """The parameter's value, from what `ask` returns for its dimensions."""
        suggested = ask(self.dimensions(name)[0])
        # Converts the JSON of a list back to the list; `is_same` because 1 == True in Python.
        value: Plain = next(value for value in self.choices if is_same(as_suggestion(value), suggested))
        return value

    def encode(self, name: str, value: Any) -> dict[str, Suggestion]:
        """The suggestions, by dimension, from which `draw` would make `value`.

        Raises:
            UsageError: the parameter cannot have this value.

        """
        if not any(is_same(value, choice) for choice in self.choices):
            known = ", ".join(map(json.dumps, self.choices))
            raise UsageError(f"{name}: {json.dumps(value)} is none of its choices {known}")
        return {name: as_suggestion(value)}


def _kind(content: Any) -> str:
    """The kind of parameter that a YAML mapping describes."""
    if "depth" in content or "width" in content:
        return "layer sizes"
    return "choice" if "choices" in content else "number"


def _check_mapping(content: Any) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError(f"{content!r} is no range: write {{low: …, high: …}} or {{choices: […]}},"
                         " or put a single value among the flags")  # fmt: skip
    return content


def _as_whole(content: Any) -> Any:
    """The YAML of a depth or a width, with `int: true` added for numbers."""
    return content if "choices" in _check_mapping(content) else {**content, "int": True}


Simple = Annotated[
    Annotated[Number, Tag("number")] | Annotated[Choice, Tag("choice")],
    Discriminator(_kind),
    BeforeValidator(_as_whole),
]


class LayerSizes(_Parameter):
    """A list of layer sizes by its length and width: `{depth: {low: 1, high: 3}, width: {choices: [64, 128]}}`."""

    depth: Simple
    width: Simple
    rule: Literal["equal", "halving", "free"] = "equal"
    """Widths: the same for all layers, half the previous layer's width, or chosen separately for each layer."""

    @model_validator(mode="after")
    def _check(self) -> "LayerSizes":
        if self.also:
            raise ValueError("also goes with numbers alone")
        for key, part in (("depth", self.depth), ("width", self.width)):
            if part.when or part.also:
                raise ValueError(f"{key}: when and also belong beside depth and width")
            for value in part.choices if isinstance(part, Choice) else [int(part.low)]:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise ValueError(f"{key}: expected an integer, not {value!r}")
                if value < 1:
                    raise ValueError(f"{key}: {value} must be at least 1")
        return self

    def dimensions(self, name: str) -> list[Dimension]:
        """The parameter's dimensions, all there may be."""
        # Two dimensions, since the first width determines the others.
        if self.rule != "free":
            return [self._depth(name), *self.width.dimensions(f"{name}.width")]
        # One width for each possible layer; a smaller depth leaves some of them unused. With a separate width for
        # each depth and layer, a sampler could not use what it learnt about the same layer at another depth.
        deepest = max(int(depth or 1) for depth in self._depth(name).grid_points or ())
        return [self._depth(name), *(self._width(name, layer) for layer in range(1, deepest + 1))]

    def draw(self, name: str, ask: Ask) -> Plain:
        """The list of sizes, from what `ask` returns for its dimensions."""
        depth = int(ask(self._depth(name)))
        if self.rule == "free":
            return [int(ask(self._width(name, layer))) for layer in range(1, depth + 1)]
        return self._by_rule(int(ask(self.width.dimensions(f"{name}.width")[0])), depth)

    def encode(self, name: str, value: Any) -> dict[str, Suggestion]:
        """The suggestions, by dimension, from which `draw` would make `value`.

        Raises:
            UsageError: the parameter cannot have this value.

        """
        if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            raise UsageError(f"{name}: expected a list of integers, not {value!r}")
        if not value:
            raise UsageError(f"{name}: [] has no layer")
        # The inverse of `draw`: the depth is the length; the widths are the first size or each size.
        suggestions = self.depth.encode(f"{name}.depth", len(value))
        if self.rule == "free":
            for layer, size in enumerate(value, 1):
                suggestions |= self.width.encode(self._width(name, layer).name, size)
        elif value == self._by_rule(value[0], len(value)):
            suggestions |= self.width.encode(f"{name}.width", value[0])
        else:
            raise UsageError(f"{name}: {value} is not what the rule {self.rule} makes")
        return suggestions

    def _depth(self, name: str) -> Dimension:
        # Each depth gives a different model, which is built before the sweep even if the depth is an interval.
        depth = self.depth.dimensions(f"{name}.depth")[0]
        return Dimension(depth.name, depth.distribution, depth.grid_points, branches=True)

    def _width(self, name: str, layer: int) -> Dimension:
        return self.width.dimensions(f"{name}.width_{layer}")[0]

    def _by_rule(self, width: int, depth: int) -> list[Any]:
        # Halving: 100, 50, 25, 12.
        return [max(1, width >> layer) if self.rule == "halving" else width for layer in range(depth)]


Parameter = Annotated[
    Annotated[Number, Tag("number")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[LayerSizes, Tag("layer sizes")],
    Discriminator(_kind),
    BeforeValidator(_check_mapping),
]
