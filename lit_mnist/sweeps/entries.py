"""What a search space is made of: numbers, choices, and lists of layer sizes."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.fields import Fields, as_kind, one_of

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
        choices = tuple(_plain(value) for value in self.values)
        return Dimension(self.name, CategoricalDistribution(choices), choices, branches=True)

    def draw(self, ask: Ask) -> Plain:
        """The value that `ask` gives."""
        given = ask(self.dimension)
        return next(value for value in self.values if _same(_plain(value), given))

    def encode(self, value: Any) -> dict[str, Parameter]:
        """The parameter that stands for `value`."""
        if not any(_same(value, choice) for choice in self.values):
            there = ", ".join(json.dumps(choice) for choice in self.values)
            raise UsageError(f"{self.name}: {json.dumps(value)} is none of its choices {there}")
        return {self.name: _plain(value)}


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
class Entry:
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


def parse_entry(name: str, content: Any) -> Entry:
    """The entry `name` of a space, from YAML.

    Raises:
        UsageError: it is not one.

    """
    if not isinstance(content, Mapping):
        raise UsageError(f"space: {name}: {content!r} is no range: write {{low: …, high: …}} or {{choices: […]}},"
                         " or put a single value among the flags")  # fmt: skip
    fields = Fields(f"space: {name}", content)
    when = {str(other): tuple(values) if isinstance(values, list) else (values,)
            for other, values in fields.take("when", dict, {}).items()}  # fmt: skip
    also = fields.take("also", dict, {})
    value = _sizes(name, fields) if "depth" in content or "width" in content else _simple(name, fields)
    fields.done()
    if also and not isinstance(value, Number) and not _all_numbers(value):
        raise UsageError(f"space: {name}: also goes with numbers alone")
    for other, factor in also.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise UsageError(f"space: {name}.also: expected a factor for {other}, not {factor!r}")
    return Entry(value, when, also)


def _all_numbers(value: Choice | Sizes) -> bool:
    return isinstance(value, Choice) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in value.values
    )


def _sizes(name: str, fields: Fields) -> Sizes:
    parts = []
    for key in ("depth", "width"):
        inner = Fields(fields.name(key), fields.take(key, dict, required=True))
        parts.append(_simple(f"{name}.{key}", inner, whole=True))
        inner.done()
    rule = one_of(fields.name("rule"), fields.take("rule", str, "equal"), RULES)
    depth = parts[0]
    if isinstance(depth, Number):
        depth = Number(depth.name, depth.distribution, depth.points, branches=True)
    return Sizes(name, depth, parts[1], rule)  # type: ignore[arg-type]


def _simple(name: str, fields: Fields, whole: bool = False) -> Simple:
    if "choices" in fields.values:
        return _choice(name, fields, whole)
    return _number(name, fields, fields.take("int", bool, whole) or whole, least=1 if whole else None)


def _choice(name: str, fields: Fields, whole: bool) -> Choice:
    values = fields.take("choices", list)
    where = fields.name("choices")
    if not values:
        raise UsageError(f"{where}: there is none")
    for i, value in enumerate(values):
        if any(_plain(value) == _plain(other) for other in values[:i]):
            raise UsageError(f"{where}: {value!r} stands there twice")
        if whole and as_kind(where, value, int) < 1:
            raise UsageError(f"{where}: {value} must be at least 1")
        if isinstance(value, Mapping):
            raise UsageError(f"{where}: expected plain values or lists, not {value!r}")
    return Choice(name, tuple(values))


def _number(name: str, fields: Fields, whole: bool, least: int | None) -> Number:
    kind: type = int if whole else float
    low, high = (fields.take(key, kind, required=True) for key in ("low", "high"))
    log, step = fields.take("log", bool, False), fields.take("step", kind)
    where = fields.where
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"{where}: low {low:g} must be below high {high:g}")
    if (log and low <= 0) or (least is not None and low < least):
        raise UsageError(f"{where}: low {low:g} must be {'above 0' if least is None else f'at least {least}'}")
    if step is not None:
        _check_step(where, low, high, log, step)
    distribution = IntDistribution(low, high, log, step or 1) if whole else FloatDistribution(low, high, log, step)
    points = _points(fields, distribution)
    return Number(name, distribution, points)


def _check_step(where: str, low: float, high: float, log: bool, step: float) -> None:
    if log:
        raise UsageError(f"{where}: step has no place on a logarithmic scale: leave out step or log")
    if step <= 0:
        raise UsageError(f"{where}: step {step:g} must be above 0")
    count = (high - low) / step
    if abs(count - round(count)) > 1e-8 * max(1.0, count):
        last = low + step * math.floor(count)
        raise UsageError(f"{where}: steps of {step:g} from {low:g} miss high {high:g}; the last is {last:g}")


def _points(fields: Fields, distribution: FloatDistribution | IntDistribution) -> tuple[Parameter, ...] | None:
    """What a grid takes of the interval: as listed, as many as said, or every step."""
    low, high, step = distribution.low, distribution.high, distribution.step
    whole = isinstance(distribution, IntDistribution)
    given = fields.values.get("points")
    if isinstance(given, list):
        values = [as_kind(fields.name("points"), value, int if whole else float)
                  for value in fields.take("points", list)]  # fmt: skip
        if not values or min(values) < low or max(values) > high or len(set(values)) < len(values):
            raise UsageError(f"{fields.name('points')}: {given} must be different values in [{low:g}, {high:g}]")
        return tuple(values)
    count = fields.take("points", int)
    if count is None:
        if step is None:
            return None
        return tuple(_tidy(low + i * step, whole) for i in range(round((high - low) / step) + 1))
    if count < 2:
        raise UsageError(f"{fields.name('points')}: {count} must be at least 2")
    return tuple(dict.fromkeys(_tidy(value, whole) for value in _spread(low, high, count, distribution.log)))


def _spread(low: float, high: float, count: int, log: bool) -> Sequence[float]:
    shares = [i / (count - 1) for i in range(count)]
    if log:
        return [low * (high / low) ** share for share in shares]
    return [low + (high - low) * share for share in shares]


def _tidy(value: float, whole: bool) -> Parameter:
    return round(value) if whole else float(f"{value:.12g}")


def _size(value: Any) -> int:
    return int(value)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _same(a: Any, b: Any) -> bool:
    """Equality that tells true from 1."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def unique(points: Iterable[Mapping[str, Plain]]) -> list[dict[str, Plain]]:
    """The different ones among `points`, in their order."""
    return list({json.dumps(point, sort_keys=True): dict(point) for point in points}.values())
