"""A search space: the fields of `fit` that a sweep varies, by their dotted names, and their values."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import BaseTrial

from lit_mnist.errors import UsageError, nearest
from lit_mnist.sweeps.search.parameters import (
    Ask,
    Choice,
    Dimension,
    LayerSizes,
    Number,
    Plain,
    Suggestion,
    unique,
)
from lit_mnist.training.config_errors import flags

GROUPS = ("model", "data", "trainer")


class Space:
    """What a sweep varies. A point of the space is a value for each parameter that applies.

    Args:
        parameters: By dotted name, in any order.

    Raises:
        UsageError: a name is no field of `fit`, or a condition cannot be met.

    """

    def __init__(self, parameters: Mapping[str, Number | Choice | LayerSizes]) -> None:
        if not parameters:
            raise UsageError("space: there is nothing to vary")
        self.parameters = _conditions_first(parameters)
        # `also` sets further fields: two parameters must not set the same one.
        self.names = tuple(name for key, p in self.parameters.items() for name in (key, *p.also))
        """Every name that a point gives a value to, `also` included."""
        for i, name in enumerate(self.names):
            _check_name(name)
            if name in self.names[:i]:
                raise UsageError(f"space: {name} is given twice, once under also")

    def suggest(self, trial: BaseTrial) -> dict[str, Plain]:
        """A point for `trial`, as its sampler suggests."""

        def ask(dimension: Dimension) -> Suggestion:
            name, d = dimension.name, dimension.distribution
            if isinstance(d, CategoricalDistribution):
                # Optuna keeps what it has suggested: a trial that is taken over gets the same values again.
                return trial.suggest_categorical(name, d.choices)
            if isinstance(d, FloatDistribution):
                return trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
            return trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)

        return self._draw(ask)

    def probe_points(self) -> list[dict[str, Plain]]:
        """Points that between them have every choice, every depth, and both ends of each interval.

        Building the model of each finds what would fail in the middle of a sweep. They are far fewer than the
        combinations of all these values: each is fixed once, with the first value of everything else.
        """
        # One point at the upper ends of all intervals; those below are at the lower ends.
        points = [self._draw(lambda dimension: _ends(dimension)[-1])]
        # Breadth-first over the branches: fix one choice after another, with first values for the rest.
        pending: list[dict[str, Suggestion]] = [{}]
        seen: set[str] = set()
        while pending:
            fixed = pending.pop(0)
            point, met = self._draw_first(fixed)
            points.append(point)
            for dimension in met:
                if dimension.branches and dimension.name not in seen:
                    seen.add(dimension.name)
                    # A condition may be met only together with the choices that led here.
                    pending += [{**fixed, dimension.name: value} for value in _ends(dimension)[1:]]
        return unique(points)

    def grid(self) -> list[dict[str, Suggestion]]:
        """Every combination of the dimensions' grid points, as suggestions; what does not apply is left out.

        Raises:
            UsageError: an interval has neither `step` nor `points`.

        """
        return list(self._combinations({}))

    def dimensions(self) -> list[Dimension]:
        """Every dimension there may be, in a fixed order."""
        return [d for name, parameter in self.parameters.items() for d in parameter.dimensions(name)]

    def conditional(self) -> list[str]:
        """Names of the parameters with intervals that not every point has a value in."""
        return [
            name
            for name, parameter in self.parameters.items()
            if not isinstance(parameter, Choice)
            and (parameter.when or (isinstance(parameter, LayerSizes) and parameter.rule == "free"))
        ]

    def encode(self, point: Mapping[str, Any]) -> dict[str, Suggestion]:
        """The suggestions that give `point`, which has a value for every parameter that applies.

        Raises:
            UsageError: a value is missing or out of range, or its parameter does not apply.

        """
        suggestions: dict[str, Suggestion] = {}
        for name, value in point.items():
            if name not in self.parameters:
                raise UsageError(f"points: there is no {name}{nearest(name, self.parameters, listed=True)}")
            suggestions |= self.parameters[name].encode(name, value)
        try:
            # Drawn from the suggestions alone, so that what is missing and what does not apply both show.
            whole = self._draw(lambda dimension: suggestions[dimension.name])
        except KeyError as error:
            raise UsageError(f"points: {dict(point)} has no {error.args[0]}") from None
        for name in point:
            if name not in whole:
                raise UsageError(f"points: {name} does not apply to {dict(point)}")
        return suggestions

    def _draw(self, ask: Ask) -> dict[str, Plain]:
        """The point that is made of what `ask` returns for each dimension that applies."""
        point: dict[str, Plain] = {}
        for name, parameter in self.parameters.items():
            if parameter.applies(point):
                # In the order of `_conditions_first`: whether a parameter applies depends on the values drawn
                # before it.
                value: Any = parameter.draw(name, ask)
                point[name] = value
                point |= {other: factor * value for other, factor in parameter.also.items()}
        return point

    def _draw_first(self, fixed: Mapping[str, Suggestion]) -> tuple[dict[str, Plain], list[Dimension]]:
        """The point with the first value of every dimension that is not fixed, and the dimensions that it has."""
        met: list[Dimension] = []

        def ask(dimension: Dimension) -> Suggestion:
            met.append(dimension)
            return fixed.get(dimension.name, _ends(dimension)[0])

        return self._draw(ask), met

    def _combinations(self, fixed: dict[str, Suggestion]) -> Iterator[dict[str, Suggestion]]:
        """Every combination that begins with `fixed`.

        Which dimensions there are depends on the values of others, so the point is drawn until it meets the first
        dimension that has no value yet, and then again with each of its grid points.
        """

        def ask(dimension: Dimension) -> Suggestion:
            if dimension.name not in fixed:
                raise _UndecidedError(dimension)
            return fixed[dimension.name]

        try:
            self._draw(ask)
        except _UndecidedError as error:
            name, grid_points = error.dimension.name, error.dimension.grid_points
            if grid_points is None:
                raise UsageError(f"space: {name}: a grid needs step or points, such as points: 5") from None
            for value in grid_points:
                yield from self._combinations({**fixed, name: value})
        else:
            yield fixed


class _UndecidedError(Exception):
    """A dimension has no value yet."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension


def _ends(dimension: Dimension) -> tuple[Suggestion, ...]:
    """Every choice or depth; of an interval the two ends."""
    distribution = dimension.distribution
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    # A depth given as an interval: every depth, since each is another model.
    if dimension.branches and dimension.grid_points is not None:
        return dimension.grid_points
    return distribution.low, distribution.high


def _check_name(name: str) -> None:
    # Only the group is checked here, which costs nothing; the field itself when the probe points are built.
    group, _, rest = name.partition(".")
    if name.startswith("data.test_"):
        raise UsageError(f"space: {name}: a sweep never reads test images; there is data.val_noise")
    if group not in GROUPS or (group == "trainer" and not rest):
        known = [flag.removeprefix("--") for flag in flags()]
        bare = sorted(other for other in known if other.rpartition(".")[2] == name)
        # `lr` means `model.lr`, but the two are too different for `nearest`.
        hint = f"; did you mean {bare[0]}?" if bare else nearest(name, known)
        raise UsageError(f"space: {name} is no field of model, data or trainer{hint}")


def _conditions_first(
    parameters: Mapping[str, Number | Choice | LayerSizes],
) -> dict[str, Number | Choice | LayerSizes]:
    """The parameters, each after those that its conditions name."""
    for name, parameter in parameters.items():
        for other, values in parameter.conditions().items():
            if other not in parameters:
                hint = nearest(other, parameters, listed=True)
                raise UsageError(f"space: {name}.when: there is no {other}{hint}")
            for value in values:
                try:
                    parameters[other].encode(other, value)
                except UsageError as error:
                    raise UsageError(f"space: {name}.when: {error}") from None
    try:
        # A point is drawn parameter by parameter: those that a condition names come first.
        order = list(TopologicalSorter({name: list(p.when) for name, p in parameters.items()}).static_order())
    except CycleError as error:
        raise UsageError(f"space: the conditions go round in a circle: {', '.join(error.args[1])}") from None
    return {name: parameters[name] for name in order}
