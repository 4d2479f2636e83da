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
    """The search space of a sweep. A point of the space has a value for each parameter that applies.

    Args:
        parameters: The parameters by dotted name, in any order.

    Raises:
        UsageError: a name is not a field of `fit`, or a condition cannot be satisfied.

    """

    def __init__(self, parameters: Mapping[str, Number | Choice | LayerSizes]) -> None:
        if not parameters:
            raise UsageError("space: there is nothing to vary")
        self.parameters = _conditions_first(parameters)
        # Includes the fields set by `also`: two parameters must not set the same field.
        self.names = tuple(name for key, p in self.parameters.items() for name in (key, *p.also))
        """The names of all fields in a point, including those set by `also`."""
        for i, name in enumerate(self.names):
            _check_name(name)
            if name in self.names[:i]:
                raise UsageError(f"space: {name} is given twice, once under also")

    def suggest(self, trial: BaseTrial) -> dict[str, Plain]:
        """The point that the sampler of `trial` suggests."""

        def ask(dimension: Dimension) -> Suggestion:
            name, d = dimension.name, dimension.distribution
            if isinstance(d, CategoricalDistribution):
                # Optuna stores suggestions, so a trial that is taken over gets the same values again.
                return trial.suggest_categorical(name, d.choices)
            if isinstance(d, FloatDistribution):
                return trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
            return trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)

        return self._draw(ask)

    def probe_points(self) -> list[dict[str, Plain]]:
        """Points that together include every choice, every depth, and both ends of each interval.

        Building their models finds errors that would otherwise occur in the middle of a sweep. There are far fewer
        of them than combinations of all these values: each value is used once, with the first values of all other
        parameters.
        """

        def draw_first(fixed: Mapping[str, Suggestion]) -> tuple[dict[str, Plain], list[Dimension]]:
            """The point with the first value of every dimension that is not fixed, and its dimensions."""
            met: list[Dimension] = []

            def ask(dimension: Dimension) -> Suggestion:
                met.append(dimension)
                return fixed.get(dimension.name, _ends(dimension)[0])

            return self._draw(ask), met

        # One point at the upper ends of all intervals; the points below are at the lower ends.
        points = [self._draw(lambda dimension: _ends(dimension)[-1])]
        # Breadth-first over the branches: fix one choice after another, with first values for the rest.
        pending: list[dict[str, Suggestion]] = [{}]
        seen: set[str] = set()
        while pending:
            fixed = pending.pop(0)
            point, met = draw_first(fixed)
            points.append(point)
            for dimension in met:
                if dimension.branches and dimension.name not in seen:
                    seen.add(dimension.name)
                    # Keep the fixed choices, on which the conditions of this dimension may depend.
                    pending += [{**fixed, dimension.name: value} for value in _ends(dimension)[1:]]
        return unique(points)

    def grid(self) -> list[dict[str, Suggestion]]:
        """Every combination of grid points, as suggestions, without parameters that do not apply.

        Raises:
            UsageError: an interval has neither `step` nor `points`.

        """
        return list(self._combinations({}))

    def dimensions(self) -> list[Dimension]:
        """All possible dimensions, in a fixed order."""
        return [d for name, parameter in self.parameters.items() for d in parameter.dimensions(name)]

    def conditional(self) -> list[str]:
        """Names of the parameters with intervals that do not apply to every point."""
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
            # Drawing the point from these suggestions shows missing values and values that do not apply.
            whole = self._draw(lambda dimension: suggestions[dimension.name])
        except KeyError as error:
            raise UsageError(f"points: {dict(point)} has no {error.args[0]}") from None
        for name in point:
            if name not in whole:
                raise UsageError(f"points: {name} does not apply to {dict(point)}")
        return suggestions

    def _draw(self, ask: Ask) -> dict[str, Plain]:
        """The point with the values that `ask` returns for each dimension that applies."""
        point: dict[str, Plain] = {}
        for name, parameter in self.parameters.items():
            if parameter.applies(point):
                # The parameters are in the order of `_conditions_first`, since conditions depend on earlier
                # values.
                value: Any = parameter.draw(name, ask)
                point[name] = value
                point |= {other: factor * value for other, factor in parameter.also.items()}
        return point

    def _combinations(self, fixed: dict[str, Suggestion]) -> Iterator[dict[str, Suggestion]]:
        """Every combination that includes `fixed`.

        Which dimensions apply depends on the values of others. So the point is drawn until a dimension without a
        value is found, and then again with each grid point of that dimension.
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
    """Every choice or depth, or the two ends of an interval."""
    distribution = dimension.distribution
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    # A depth given as an interval: every depth, since each gives a different model.
    if dimension.branches and dimension.grid_points is not None:
        return dimension.grid_points
    return distribution.low, distribution.high


def _check_name(name: str) -> None:
    # Only the group is checked here, which is fast; the field itself is checked when the probe points are built.
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
    """The parameters, ordered so that each comes after the parameters in its conditions."""
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
        order = list(TopologicalSorter({name: list(p.when) for name, p in parameters.items()}).static_order())
    except CycleError as error:
        raise UsageError(f"space: the conditions go round in a circle: {', '.join(error.args[1])}") from None
    return {name: parameters[name] for name in order}
