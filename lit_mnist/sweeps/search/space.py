"""A search space: dotted names of the command line, and what values they may take."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import BaseTrial

from lit_mnist.errors import UsageError, nearest
from lit_mnist.sweeps.search.fields import one_of
from lit_mnist.sweeps.search.parameters import (
    Ask,
    Choice,
    Dimension,
    Parameter,
    Plain,
    SearchParameter,
    Sizes,
    unique,
)
from lit_mnist.sweeps.search.parsing import parse_parameter
from lit_mnist.training.config_errors import flags

GROUPS = ("model", "data", "trainer")


class Space:
    """What a sweep varies.

    Args:
        entries: YAML's: by dotted name `{low, high, log, int, step, points}`, `{choices}` or
            `{depth, width, rule}`, each with `when` and `also` where it depends on others or others on it.

    Raises:
        UsageError: an entry is wrong, or depends on what is not there.

    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        if not entries:
            raise UsageError("space: there is nothing to vary")
        parsed = {str(name): parse_parameter(str(name), content) for name, content in entries.items()}
        self.entries = _ordered(parsed)
        self.names = tuple(name for key, entry in self.entries.items() for name in (key, *entry.also))
        """Every name that a point gives a value to."""
        for i, name in enumerate(self.names):
            _check_name(name)
            if name in self.names[:i]:
                raise UsageError(f"space: {name} stands there twice, once as what goes with another")

    def suggest(self, trial: BaseTrial) -> dict[str, Plain]:
        """Values by name for `trial`, without those that do not apply."""
        return self._draw(lambda dimension: _suggest(trial, dimension))

    def kinds(self) -> list[dict[str, Plain]]:
        """Points that between them have every choice, every depth, and both ends of each interval."""
        points = [self._draw(lambda dimension: _ends(dimension)[-1])]
        pending: list[dict[str, Parameter]] = [{}]
        seen: set[str] = set()
        while pending:
            fixed = pending.pop(0)
            met: list[Dimension] = []
            points.append(self._draw(_picker(fixed, met)))
            for dimension in met:
                if dimension.branches and dimension.name not in seen:
                    seen.add(dimension.name)
                    # A condition may be met only together with the choices that led here.
                    pending += [{**fixed, dimension.name: value} for value in _ends(dimension)[1:]]
        return unique(points)

    def grid(self) -> list[dict[str, Parameter]]:
        """Every combination, as Optuna's parameters; those that do not apply are left out.

        Raises:
            UsageError: an interval is not divided.

        """
        return list(self._combinations({}))

    def dimensions(self) -> list[Dimension]:
        """Every parameter there may be, in a fixed order."""
        return [d for entry in self.entries.values() for d in _dimensions(entry)]

    def conditional(self) -> list[str]:
        """Names of the intervals that not every point has a value in."""
        return [
            name
            for name, entry in self.entries.items()
            if not isinstance(entry.value, Choice)
            and (entry.when or (isinstance(entry.value, Sizes) and entry.value.rule == "free"))
        ]

    def encode(self, point: Mapping[str, Any]) -> dict[str, Parameter]:
        """Optuna's parameters for `point`, which names a value for every entry that applies.

        Raises:
            UsageError: a value is missing, out of range, or of what does not apply.

        """
        parameters: dict[str, Parameter] = {}
        for name, value in point.items():
            parameters |= self.entries[one_of("points", name, self.entries)].value.encode(value)
        try:
            whole = self._draw(lambda dimension: parameters[dimension.name])
        except KeyError as error:
            raise UsageError(f"points: {dict(point)} has no {error.args[0]}") from None
        for name in point:
            if name not in whole:
                raise UsageError(f"points: {name} does not apply to {dict(point)}")
        return parameters

    def _draw(self, ask: Ask) -> dict[str, Plain]:
        point: dict[str, Plain] = {}
        for name, entry in self.entries.items():
            if entry.applies(point):
                point[name] = entry.value.draw(ask)
                point |= entry.tied(point[name])
        return point

    def _combinations(self, fixed: dict[str, Parameter]) -> Iterator[dict[str, Parameter]]:
        """Those that begin with what is `fixed`: the first parameter that is not, at each of its points."""
        try:
            self._draw(lambda dimension: fixed[dimension.name] if dimension.name in fixed else _open(dimension))
        except _OpenError as met:
            for value in met.points:
                yield from self._combinations({**fixed, met.name: value})
        else:
            yield fixed


class _OpenError(Exception):
    """A parameter without a value."""

    def __init__(self, name: str, points: tuple[Parameter, ...]) -> None:
        self.name, self.points = name, points


def _open(dimension: Dimension) -> Any:
    if dimension.points is None:
        raise UsageError(f"space: {dimension.name}: a grid needs step or points, such as points: 5")
    raise _OpenError(dimension.name, dimension.points)


def _picker(fixed: Mapping[str, Parameter], met: list[Dimension]) -> Ask:
    """Gives what is fixed and else the first value, and notes what it was asked for."""

    def ask(dimension: Dimension) -> Parameter:
        met.append(dimension)
        return fixed.get(dimension.name, _ends(dimension)[0])

    return ask


def _ends(dimension: Dimension) -> tuple[Parameter, ...]:
    """Every choice or depth; of an interval the two ends."""
    distribution = dimension.distribution
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if dimension.branches and dimension.points is not None:
        return dimension.points
    return distribution.low, distribution.high


def _suggest(trial: BaseTrial, dimension: Dimension) -> Parameter:
    name, d = dimension.name, dimension.distribution
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(name, d.choices)
    if isinstance(d, FloatDistribution):
        return trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
    return trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)


def _dimensions(entry: SearchParameter) -> list[Dimension]:
    value = entry.value
    if not isinstance(value, Sizes):
        return [value.dimension]
    if value.rule != "free":
        return [value.depth.dimension, value.width.dimension]
    return [value.depth.dimension, *value.widths()]


def _check_name(name: str) -> None:
    group, _, rest = name.partition(".")
    if name.startswith("data.test_"):
        raise UsageError(f"space: {name}: a sweep never reads test images; there is data.val_noise")
    if group not in GROUPS or (group == "trainer" and not rest):
        known = [flag.removeprefix("--") for flag in flags()]
        bare = sorted(other for other in known if other.rpartition(".")[2] == name)
        hint = f"; did you mean {bare[0]}?" if bare else nearest(name, known)
        raise UsageError(f"space: {name} is no field of model, data or trainer{hint}")


def _ordered(entries: dict[str, SearchParameter]) -> dict[str, SearchParameter]:
    """Conditions first."""
    for name, entry in entries.items():
        for other, values in entry.when.items():
            one_of(f"space: {name}.when", other, entries)
            target = entries[other].value
            for value in values:
                try:
                    target.encode(value)
                except UsageError as error:
                    raise UsageError(f"space: {name}.when: {error}") from None
    try:
        order = list(TopologicalSorter({name: entry.when for name, entry in entries.items()}).static_order())
    except CycleError as error:
        raise UsageError(f"space: the conditions go round in a circle: {', '.join(error.args[1])}") from None
    rank = {name: i for i, name in enumerate(order)}
    return dict(sorted(entries.items(), key=lambda item: rank[item[0]]))
