"""YAML as the entries of a space."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.fields import Fields, as_kind, one_of
from lit_mnist.sweeps.search.parameters import (
    RULES,
    Choice,
    Number,
    Parameter,
    SearchParameter,
    Simple,
    Sizes,
    plain,
)


def parse_parameter(name: str, content: Any) -> SearchParameter:
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
    return SearchParameter(value, when, also)


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
        if any(plain(value) == plain(other) for other in values[:i]):
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
