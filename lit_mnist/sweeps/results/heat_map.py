"""The heat map of a study: its first objective over two of its parameters.

Optuna's contour plot (5.0) marks neither pruned trials nor the points that were given to the study, and it colours
the whole plane, also where no trial is near. This one colours only what lies between trials.
"""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.tri import LinearTriInterpolator, Triangulation
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from lit_mnist.sweeps.results.figures import (
    COLOUR_MAP,
    INK,
    NO_VALUE_MARKERS,
    PERCENT,
    add_colour_bar,
    colour_scale,
    new_figure,
    use_log_axis,
)
from lit_mnist.sweeps.study.summary import StudySummary
from lit_mnist.tracking.queries.metrics import is_share

MIN_INTERPOLATED = 8
"""Number of distinct places from which the space between the trials is coloured."""
GRID = 200
CONTOURS = (0.5, 0.9, 0.95, 0.98)
"""Shares at which a contour line is drawn."""
Array = NDArray[Any]


def heat_map(summary: StudySummary, x_name: str, y_name: str) -> Figure:
    """Draw each complete trial as a point coloured by the first objective.

    With enough trials the space between them is coloured too. Pruned and failed trials have their own markers, and
    a ring marks each point that was given to the study.

    Args:
        summary: A study with at least one complete trial.
        x_name: Numeric parameter of the horizontal axis.
        y_name: Numeric parameter of the vertical axis.

    """
    metric = summary.objectives[0]
    figure = new_figure(8, 5.4, f"{summary.name}: {metric} over {x_name} and {y_name}")
    axes = figure.subplots()
    trials = [trial for trial in summary.complete if math.isfinite(trial.values[0])]
    values = np.array([trial.values[0] for trial in trials])
    points = _points(trials, x_name, y_name)
    norm = colour_scale(metric, values.tolist())
    logs = []
    for column, (which, name) in enumerate((("x", x_name), ("y", y_name))):
        distribution: Any = trials[0].distributions[name]
        logs.append(bool(getattr(distribution, "log", False)))
        if logs[-1]:
            use_log_axis(axes, "x" if which == "x" else "y", points[:, column].tolist())
        # The whole search space, and beyond it any given point that lies outside.
        ends = np.array([min(distribution.low, *points[:, column]), max(distribution.high, *points[:, column])])
        low, high = np.log(ends) if logs[-1] else ends
        limits = np.array([low - 0.04 * (high - low), high + 0.04 * (high - low)])
        axes.set(**{f"{which}lim": np.exp(limits) if logs[-1] else limits})
    if (surface := _interpolate(points, values, logs)) is not None:
        axes.pcolormesh(*surface, cmap=COLOUR_MAP, norm=norm, shading="nearest", alpha=0.75)
        levels = [level for level in CONTOURS if surface[2].min() < level < surface[2].max()]
        if is_share(metric) and levels:
            lines = axes.contour(*surface, levels=levels, colors=INK, linewidths=0.8)
            axes.clabel(lines, fmt=PERCENT, fontsize=8)
    x, y = points.T
    edge: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.8}
    axes.scatter(x, y, c=values, cmap=COLOUR_MAP, norm=norm, s=42, zorder=3, **edge)
    for state, marker, colour, label in NO_VALUE_MARKERS:
        ended = [t for t in summary.trials if t.state == state and x_name in t.params and y_name in t.params]
        if ended:
            x, y = _points(ended, x_name, y_name).T
            axes.scatter(x, y, marker=marker, s=32, color=colour, zorder=3, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.01, 0.98))
    _ring_given_points(axes, summary, x_name, y_name)
    axes.set_xlabel(x_name, parse_math=False)
    axes.set_ylabel(y_name, parse_math=False)
    add_colour_bar(axes, norm, metric, summary.upwards[0])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _interpolate(points: Array, values: Array, logs: list[bool]) -> tuple[Array, Array, Array] | None:
    """Interpolate linearly between the trials; values of trials at the same place are averaged.

    Args:
        points: The trials' places, (N, 2).
        values: Their values, (N,).
        logs: For each of the two axes, True if it is logarithmic; distances are then taken in the logarithm.

    Returns:
        Columns (G,), rows (G,) and values (G, G), masked outside the points' convex hull; None if there
        are too few places, or all of them lie on a line, which encloses no area.

    """
    scaled = np.column_stack([np.log(c) if log else c for c, log in zip(points.T, logs, strict=True)])
    low, size = scaled.min(0), np.ptp(scaled, axis=0)
    unit, inverse = np.unique(np.round((scaled - low) / size, 6), axis=0, return_inverse=True)
    means = np.bincount(inverse.ravel(), values) / np.bincount(inverse.ravel())
    if len(unit) < MIN_INTERPOLATED or np.linalg.matrix_rank(unit - unit.mean(0), tol=1e-3) < 2:
        return None
    line = np.linspace(0, 1, GRID)
    surface = LinearTriInterpolator(Triangulation(*unit.T), means)(*np.meshgrid(line, line))
    columns, rows = (np.exp(low[i] + line * size[i]) if logs[i] else low[i] + line * size[i] for i in (0, 1))
    return columns, rows, surface


def _ring_given_points(axes: Axes, summary: StudySummary, x_name: str, y_name: str) -> None:
    """Ring each point that was given to the study, and print the value that was reached there."""
    metric = summary.objectives[0]
    for given in summary.given:
        if x_name not in given or y_name not in given:
            continue
        place = (float(given[x_name]), float(given[y_name]))
        text = "given point"
        for trial in summary.complete:
            if (trial.params.get(x_name), trial.params.get(y_name)) == place:
                value = trial.values[0]
                text += f": {100 * value:.1f} %" if is_share(metric) else f": {value:.4g}"
                break
        axes.scatter(*place, s=170, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=4)
        # Left of the point where the text would run out of the axes.
        on_right = axes.transAxes.inverted().transform(axes.transData.transform(place))[0] > 0.6
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes.annotate(text, place, xytext=(-12 if on_right else 12, -4), textcoords="offset points", fontsize=9,
                      color=INK, bbox=box, zorder=5, ha="right" if on_right else "left")  # fmt: skip


def _points(trials: list[FrozenTrial], x_name: str, y_name: str) -> Array:
    """The two parameters of each trial, (N, 2)."""
    return np.array([[trial.params[x_name], trial.params[y_name]] for trial in trials], dtype=float)
