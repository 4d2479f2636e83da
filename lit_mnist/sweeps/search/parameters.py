"""What a search space is made of: numbers, choices, and lists of layer sizes."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.fields import as_kind

Plain = bool | int | float | str | None | list[Any]
Parameter = bool | int | float | str | None
"""What Optuna stores of a choice."""
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Rule = Literal["equal", "halving", "free"]
RULES: tuple[Rule, ...] = ("equal", "halving", "free")


@dataclass(frozen=True)
class Dimension:
    """One parameter of Optuna's."""

    name: str
    distribution: Distribution
    points: tuple[Parameter, ...] | None = None
    """What a grid takes; None of an interval that nobody has divided."""
    branches: bool = False
    """Whether each value makes another kind of model."""


Ask = Callable[[Dimension], Any]


@dataclass(frozen=True)
class Number:
    """A number between two others."""

    name: str
    distribution: FloatDistribution | IntDistribution
    points: tuple[Parameter, ...] | None = None
    branches: bool = False

    @property
    def dimension(self) -> Dimension:
        """Its parameter."""
        return Dimension(self.name, self.distribution, self.points, self.branches)

    def draw(self, ask: Ask) -> Plain:
        """The value that `ask` gives."""
        value: Plain = ask(self.dimension)
        return value

    def encode(self, value: Any) -> dict[str, Parameter]:
        """The parameter that stands for `value`."""
        kind = int if isinstance(self.distribution, IntDistribution) else float
        number = as_kind(self.name, value, kind)
        low, high = self.distribution.low, self.distribution.high
        if not low <= number <= high:
            raise UsageError(f"{self.name}: {value} must lie in [{low:g}, {high:g}]")
        return {self.name: number}


@dataclass(frozen=True)
class Choice:
    """One of several values; Optuna is given lists as JSON."""

    name: str
    values: tuple[Plain, ...]

    @property
    def dimension(self) -> Dimension:
        """Its parameter."""
        choices = tuple(plain(value) for value in self.values)
        return Dimension(self.name, CategoricalDistribution(choices), choices, branches=True)

    def draw(self, ask: Ask) -> Plain:
        """The value that `ask` gives."""
        given = ask(self.dimension)
        return next(value for value in self.values if _same(plain(value), given))

    def encode(self, value: Any) -> dict[str, Parameter]:
        """The parameter that stands for `value`."""
        if not any(_same(value, choice) for choice in self.values):
            there = ", ".join(json.dumps(choice) for choice in self.values)
            raise UsageError(f"{self.name}: {json.dumps(value)} is none of its choices {there}")
        return {self.name: plain(value)}


Simple = Number | Choice


@dataclass(frozen=True)
class Sizes:
    """A list of layer sizes, by how many there are and how wide they are."""

    name: str
    depth: Simple
    width: Simple
    rule: Rule

    def draw(self, ask: Ask) -> Plain:
        """The list that `ask` gives the depth and the widths of."""
        depth = _size(self.depth.draw(ask))
        if self.rule == "free":
            return [_size(self._width(layer).draw(ask)) for layer in range(1, depth + 1)]
        return self._by_rule(_size(self.width.draw(ask)), depth)

    def encode(self, value: Any) -> dict[str, Parameter]:
        """The parameters that stand for the list `value`."""
        sizes = [as_kind(self.name, size, int) for size in as_kind(self.name, value, list)]
        if not sizes:
            raise UsageError(f"{self.name}: [] has no layer")
        parameters = self.depth.encode(len(sizes))
        if self.rule == "free":
            for layer, size in enumerate(sizes, 1):
                parameters |= self._width(layer).encode(size)
        elif sizes == self._by_rule(sizes[0], len(sizes)):
            parameters |= self.width.encode(sizes[0])
        else:
            raise UsageError(f"{self.name}: {sizes} is not what the rule {self.rule} makes")
        return parameters

    def widths(self) -> list[Dimension]:
        """The parameters of all widths there may be under the rule `free`."""
        deepest = max(_size(depth) for depth in self.depth.dimension.points or ())
        return [self._width(layer).dimension for layer in range(1, deepest + 1)]

    def _by_rule(self, width: int, depth: int) -> list[Any]:
        return [max(1, width >> layer) if self.rule == "halving" else width for layer in range(depth)]

    def _width(self, layer: int) -> Simple:
        name = f"{self.width.name}_{layer}"
        if isinstance(self.width, Choice):
            return Choice(name, self.width.values)
        return Number(name, self.width.distribution, self.width.points)


@dataclass(frozen=True)
class SearchParameter:
    """A name of the space: its values, when it applies, and which others go with it."""

    value: Number | Choice | Sizes
    when: Mapping[str, tuple[Plain, ...]] = field(default_factory=dict)
    also: Mapping[str, float] = field(default_factory=dict)
    """Other names, and how many times this one's value they are."""

    def applies(self, point: Mapping[str, Plain]) -> bool:
        """Whether the values drawn before leave room for it."""
        return all(
            name in point and any(_same(value, point[name]) for value in values)
            for name, values in self.when.items()
        )

    def tied(self, value: Plain) -> dict[str, Plain]:
        """The values of those that go with it."""
        return {name: factor * value for name, factor in self.also.items()}  # type: ignore[operator]


def _size(value: Any) -> int:
    return int(value)


def plain(value: Any) -> Any:
    """A choice as Optuna stores it."""
    return json.dumps(value) if isinstance(value, list) else value


def _same(a: Any, b: Any) -> bool:
    """Equality that tells true from 1."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def unique(points: Iterable[Mapping[str, Plain]]) -> list[dict[str, Plain]]:
    """The different ones among `points`, in their order."""
    return list({json.dumps(point, sort_keys=True): dict(point) for point in points}.values())
