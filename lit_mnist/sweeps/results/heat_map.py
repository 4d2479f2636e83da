"""A study's first goal over two of its parameters."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.tri import LinearTriInterpolator, Triangulation
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from lit_mnist.sweeps.results.style import (
    ENDED,
    INK,
    MAP,
    PERCENT,
    colour_bar,
    colour_scale,
    new_figure,
    style_log,
)
from lit_mnist.sweeps.study.summary import StudySummary
from lit_mnist.tracking.queries.metrics import is_share

FEWEST = 8
"""Trials below which nothing is said of what lies between them."""
FINENESS = 200
LEVELS = (0.5, 0.9, 0.95, 0.98)
"""Shares that get a line."""
Array = NDArray[Any]
Between = tuple[list[Array], Array]
"""Where the columns and rows lie, and the values there, masked where nothing is known."""
Scales = tuple[bool, bool]
"""Whether each axis is logarithmic."""


def heat_map(found: StudySummary, across: str, up: str) -> Figure:
    """Each trial as a point coloured by its value, over an interpolation where there are enough of them.

    Points that were given to the study are marked, as are trials without a value.
    """
    figure = new_figure(8, 5.4, f"{found.name}: {found.objectives[0]} over {across} and {up}")
    axes = figure.subplots()
    usable = [trial for trial in found.complete if math.isfinite(trial.values[0])]
    values = np.array([trial.values[0] for trial in usable])
    places = _places(usable, across, up)
    logs = (_is_log(usable[0].distributions[across]), _is_log(usable[0].distributions[up]))
    norm = colour_scale(found.objectives[0], values.tolist())
    if logs[0]:
        style_log(axes, "x", places[:, 0].tolist())
    if logs[1]:
        style_log(axes, "y", places[:, 1].tolist())
    axes.set(xlim=_limits(usable, across, logs[0]), ylim=_limits(usable, up, logs[1]))
    if len(usable) >= FEWEST:
        between = _interpolate(axes, places, values, logs, norm)
        if between is not None and is_share(found.objectives[0]):
            _draw_levels(axes, *between)
    axes.scatter(
        places[:, 0],
        places[:, 1],
        c=values,
        cmap=MAP,
        norm=norm,
        s=42,
        edgecolors="white",
        linewidths=0.8,
        zorder=3,
    )
    _mark_ended(axes, found, across, up)
    for given in found.given:
        _mark_given(axes, found, given, across, up)
    axes.set_xlabel(across, parse_math=False)
    axes.set_ylabel(up, parse_math=False)
    colour_bar(axes, norm, found.objectives[0], found.upwards[0])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _interpolate(axes: Axes, places: Array, values: Array, logs: Scales, norm: Any) -> Between | None:
    """Colour what lies between the trials, as the axes measure distance; those that share a place are averaged."""
    scaled = np.column_stack([np.log(c) if log else c for c, log in zip(places.T, logs, strict=True)])
    low, size = scaled.min(0), np.ptp(scaled, axis=0)
    unit, inverse = np.unique(np.round((scaled - low) / size, 6), axis=0, return_inverse=True)
    means = np.bincount(inverse.ravel(), values) / np.bincount(inverse.ravel())
    # Three places in a line have nothing between them.
    if len(unit) < FEWEST or np.linalg.matrix_rank(unit - unit.mean(0), tol=1e-3) < 2:
        return None
    line = np.linspace(0, 1, FINENESS)
    between = LinearTriInterpolator(Triangulation(*unit.T), means)(*np.meshgrid(line, line))
    edges = [_unscale(low[i] + line * size[i], logs[i]) for i in (0, 1)]
    axes.pcolormesh(*edges, between, cmap=MAP, norm=norm, shading="nearest", alpha=0.75)
    return edges, between


def _draw_levels(axes: Axes, edges: list[Array], between: Array) -> None:
    if levels := [level for level in LEVELS if between.min() < level < between.max()]:
        lines = axes.contour(*edges, between, levels=levels, colors=INK, linewidths=0.8)
        axes.clabel(lines, fmt=PERCENT, fontsize=8)


def _mark_ended(axes: Axes, found: StudySummary, across: str, up: str) -> None:
    """Mark the trials that have no value."""
    for state, marker, colour, label in ENDED:
        ended = [t for t in found.trials if t.state == state and across in t.params and up in t.params]
        if ended:
            x, y = _places(ended, across, up).T
            axes.scatter(x, y, marker=marker, s=32, color=colour, zorder=3, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.01, 0.98))


def _mark_given(axes: Axes, found: StudySummary, given: Mapping[str, Any], across: str, up: str) -> None:
    """Ring a point that was given, and write its value beside it."""
    if across not in given or up not in given:
        return
    place = (float(given[across]), float(given[up]))
    there = [t for t in found.complete if (t.params.get(across), t.params.get(up)) == place]
    text = "given point" + (f": {_show(found.objectives[0], there[0].values[0])}" if there else "")
    axes.scatter(*place, s=170, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=4)
    right = axes.transAxes.inverted().transform(axes.transData.transform(place))[0] > 0.6
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    style: dict[str, Any] = {
        "ha": "right" if right else "left",
        "fontsize": 9,
        "color": INK,
        "bbox": box,
        "zorder": 5,
    }
    axes.annotate(text, place, xytext=(-12 if right else 12, -4), textcoords="offset points", **style)


def _show(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def _places(trials: list[FrozenTrial], across: str, up: str) -> Array:
    """Where the trials lie, (N, 2)."""
    return np.array([[trial.params[across], trial.params[up]] for trial in trials], dtype=float)


def _limits(trials: list[FrozenTrial], name: str, log: bool) -> tuple[float, float]:
    """The space's own, and a little more; of what was tried, should a point lie outside."""
    distribution: Any = trials[0].distributions[name]
    tried = [trial.params[name] for trial in trials]
    ends = np.array([min(distribution.low, *tried), max(distribution.high, *tried)], dtype=float)
    low, high = np.log(ends) if log else ends
    room = 0.04 * (high - low)
    first, last = _unscale(np.array([low - room, high + room]), log)
    return float(first), float(last)


def _is_log(distribution: BaseDistribution) -> bool:
    return bool(getattr(distribution, "log", False))


def _unscale(values: Array, log: bool) -> Array:
    return np.exp(values) if log else values
