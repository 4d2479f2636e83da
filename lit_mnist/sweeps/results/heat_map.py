"""The heat map of a study: its first objective over two of its parameters, as a table if these form a grid.

Optuna's contour plot (5.0) marks neither pruned trials nor the given points of the study, and it colours the whole
plane, also far from any trial. This heat map colours only the area between trials.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.tri import LinearTriInterpolator, Triangulation
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.sweeps.results.plotting import (
    INK,
    ORANGE,
    PERCENT,
    PINK,
    Scale,
    add_colour_bar,
    add_legend,
    address,
    colour_map,
    colour_scale,
    mark_trials,
    new_figure,
    scale_of,
    show_metric,
)
from lit_mnist.sweeps.study.summary import StudySummary, is_allowed, show
from lit_mnist.tracking.queries.metrics import is_share
from lit_mnist.tracking.queries.statistics import summarise

MIN_INTERPOLATED = 8
"""Minimum number of distinct points for colouring the area between the trials."""
GRID = 200
CONTOURS = (0.5, 0.9, 0.95, 0.98)
"""Shares at which a contour line is drawn."""
MAX_CELLS = 14
"""Maximum number of rows and of columns of a table."""
Array = NDArray[Any]


def heat_map_parameters(summary: StudySummary, names: Sequence[str]) -> tuple[str, str] | None:
    """The parameters of the heat map: a learning rate and its momentum, or otherwise the first two suitable ones.

    Suitable are two numeric parameters that all trials have, also if they are given as choices; or otherwise any
    two parameters of which every combination was tried.

    Args:
        summary: The study.
        names: Its parameters that varied, most important first.

    """
    trials = [trial for trial in summary.trials if summary.value(trial) is not None]
    everywhere = [name for name in names if all(name in trial.params for trial in trials)]
    numeric = [name for name in everywhere if scale_of(name, trials).is_numeric]
    # The pair that Zhang's paper is about (0.05 and 0.99); otherwise the two most important ones.
    for rate in numeric:
        momentum = f"{rate.rpartition('.')[0]}.momentum"
        if rate.endswith(".lr") and momentum in numeric:
            return rate, momentum
    if len(numeric) > 1:
        return numeric[0], numeric[1]
    # Choices have no order, so they need a table, in which all cells have a value.
    for pair in itertools.combinations(everywhere, 2):
        if is_full_grid(summary, *(scale_of(name, trials) for name in pair)):
            return pair
    return None


def heat_map(summary: StudySummary, x_name: str, y_name: str) -> Figure:
    """Draw the first objective over two parameters, as a table if every combination was tried, otherwise as a map.

    Args:
        summary: A study with at least one trial that has a value.
        x_name: Parameter of the horizontal axis.
        y_name: Parameter of the vertical axis.

    """
    trials = [trial for trial in summary.trials if summary.value(trial) is not None]
    x, y = (scale_of(name, trials) for name in (x_name, y_name))
    return _table(summary, x, y) if is_full_grid(summary, x, y) else _map(summary, x, y, trials)


def is_full_grid(summary: StudySummary, x: Scale, y: Scale) -> bool:
    """True if every combination of the parameters' values was tried, and they fit a table."""
    if not all(2 <= len(scale.values) <= MAX_CELLS for scale in (x, y)):
        return False
    tried = {(trial.params.get(x.name), trial.params.get(y.name)) for trial in summary.finished}
    return all(pair in tried for pair in itertools.product(x.values, y.values))


def _table(summary: StudySummary, x: Scale, y: Scale) -> Figure:
    """One cell for each combination, with the mean of its trials and their interval."""
    metric = summary.objectives[0]
    cells: dict[tuple[Any, Any], list[FrozenTrial]] = {}
    for trial in summary.finished:
        place = trial.params.get(x.name), trial.params.get(y.name)
        if place in itertools.product(x.values, y.values):
            cells.setdefault(place, []).append(trial)
    # Value and text of each cell; the colour scale needs all values first.
    contents = {place: _cell(summary, trials) for place, trials in cells.items()}
    numbers = [value for value, _ in contents.values() if value is not None]
    norm, cmap = colour_scale(metric, numbers), colour_map(summary.upwards[0])
    crowded = len(x.values) > 8
    figure = new_figure(
        max(6.0, 2.4 + (0.82 if crowded else 1.0) * len(x.values)), max(3.2, 1.8 + 0.5 * len(y.values)),
        f"{summary.name}: {metric} over {x.name} and {y.name}",
    )  # fmt: skip
    axes = figure.subplots()
    best = {trial.number for trial in summary.best()}
    for (x_value, y_value), trials in cells.items():
        value, text = contents[x_value, y_value]
        column, row = x.values.index(x_value), y.values.index(y_value)
        colour = "#EEEEEE" if value is None else cmap(norm(value))
        # A pruned cell has only a coloured frame, since its value is from an earlier epoch than the others.
        is_pruned = all(trial.state != TrialState.COMPLETE for trial in trials)
        cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="white" if is_pruned else colour, linewidth=2,
                         edgecolor=colour if is_pruned else "white", url=address(trials[0]))  # fmt: skip
        axes.add_patch(cell)
        # Luma (Rec. 709) decides between white and dark text.
        is_dark = not is_pruned and np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=7 if crowded else 8.5,
                  color="white" if is_dark else INK, url=address(trials[0]))  # fmt: skip
        # Inside the cell, since otherwise the neighbouring cell would cover half of the frame.
        if best & {trial.number for trial in trials}:
            axes.add_patch(Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=ORANGE,
                                     linewidth=2.5, zorder=3))  # fmt: skip
    for which, scale in (("x", x), ("y", y)):
        # A table has a column for each value, also where the parameter is a number.
        labels = [show(value) for value in scale.values]
        (axes.set_xticks if which == "x" else axes.set_yticks)(range(len(labels)), labels, parse_math=False)
        (axes.set_xlabel if which == "x" else axes.set_ylabel)(scale.name, parse_math=False)
    axes.set(xlim=(-0.5, len(x.values) - 0.5), ylim=(-0.5, len(y.values) - 0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_table_note(summary, cells), loc="left", fontsize=9, color="#555555")
    add_colour_bar(axes, norm, metric, summary.upwards[0])
    return figure


def _cell(summary: StudySummary, trials: Sequence[FrozenTrial]) -> tuple[float | None, str]:
    """Value and text of a cell: the mean of its complete trials, or else the last value of a pruned one."""
    metric = summary.objectives[0]
    complete = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE and is_allowed(trial)]
    complete = [value for value in complete if math.isfinite(value)]
    # Several trials of one cell: samplers repeat points, and a study may have points of its own.
    if len(complete) > 1:
        mean = summarise(complete)
        return mean.mean, _two_lines(show_metric(metric, mean.mean, mean.interval))
    if complete:
        of_seeds = next(summary.interval(trial) for trial in trials if summary.value(trial) == complete[0])
        return complete[0], _two_lines(show_metric(metric, complete[0], of_seeds))
    pruned = [value for trial in trials if (value := summary.value(trial)) is not None]
    if pruned:
        return pruned[0], f"{show_metric(metric, pruned[0])}\npruned"
    return None, "failed" if any(trial.state == TrialState.FAIL for trial in trials) else "pruned"


def _two_lines(text: str) -> str:
    return text.replace(" ± ", "\n± ")


def _table_note(summary: StudySummary, cells: dict[tuple[Any, Any], list[FrozenTrial]]) -> str:
    """The explanation of the numbers in the cells."""
    most, framed = max(map(len, cells.values())), "best" if len(summary.objectives) == 1 else "Pareto front"
    if most > 1:
        return f"means of up to {most} trials with their 95 % interval; framed: {framed}"
    if len(summary.seeds) > 1:
        return f"means of {len(summary.seeds)} seeds with their 95 % interval; framed: {framed}"
    return f"one seed ({summary.seeds[0]}), so no interval over seeds; framed: {framed}"


def _map(summary: StudySummary, x: Scale, y: Scale, trials: list[FrozenTrial]) -> Figure:
    """The trials as points coloured by the first objective; with enough trials the area between them too.

    Given points of the study are labelled.
    """
    metric = summary.objectives[0]
    figure = new_figure(8, 5.4, f"{summary.name}: {metric} over {x.name} and {y.name}")
    axes = figure.subplots()
    norm = colour_scale(metric, [value for trial in trials if (value := summary.value(trial)) is not None])
    x.apply(axes, "x")
    y.apply(axes, "y")
    # Without pruned trials, whose values of an earlier epoch are not comparable with final values.
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    values = np.array([trial.values[0] for trial in complete])
    points = np.array([[t.params[x.name], t.params[y.name]] for t in complete], dtype=float).reshape(-1, 2)
    # First the area between the trials, then the trials on top.
    if (surface := _interpolate(points, values, [x.kind == "log", y.kind == "log"])) is not None:
        axes.pcolormesh(*surface, cmap=colour_map(summary.upwards[0]), norm=norm, shading="nearest", alpha=0.6,
                        rasterized=True)  # fmt: skip  # in an SVG: an image instead of 40,000 rectangles
        levels = [level for level in CONTOURS if surface[2].min() < level < surface[2].max()]
        if is_share(metric) and levels:
            lines = axes.contour(*surface, levels=levels, colors=INK, linewidths=0.8)
            axes.clabel(lines, fmt=PERCENT, fontsize=8)
    places = [(trial, float(trial.params[x.name]), float(trial.params[y.name])) for trial in trials]
    mark_trials(axes, summary, places, norm, index=None, size=42)
    failed = [trial for trial in summary.trials if trial.state == TrialState.FAIL]
    failed = [trial for trial in failed if x.name in trial.params and y.name in trial.params]
    if failed:
        at_x, at_y = zip(*((trial.params[x.name], trial.params[y.name]) for trial in failed), strict=True)
        drawn = axes.scatter(at_x, at_y, marker="x", s=32, color=PINK, zorder=3, label="failed")
        drawn.set_urls([address(trial) for trial in failed])
    marks = [place[1:] for place in places]
    marks += [(float(trial.params[x.name]), float(trial.params[y.name])) for trial in failed]
    _label_given_points(axes, summary, x.name, y.name, marks)
    add_colour_bar(axes, norm, metric, summary.upwards[0])
    add_legend(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _interpolate(points: Array, values: Array, logs: list[bool]) -> tuple[Array, Array, Array] | None:
    """Interpolate linearly between the trials; values of trials at the same point are averaged.

    Args:
        points: The trials' coordinates, (N, 2).
        values: Their values, (N,).
        logs: For each of the two axes, True if it is logarithmic; the interpolation then uses the logarithm.

    Returns:
        Columns (G,), rows (G,) and values (G, G), masked outside the points' convex hull; None if there are too
        few points, or if all of them are on a line.

    """
    if len(points) < MIN_INTERPOLATED or (np.ptp(points, axis=0) == 0).any():
        return None
    scaled = np.column_stack([np.log(c) if log else c for c, log in zip(points.T, logs, strict=True)])
    low, size = scaled.min(0), np.ptp(scaled, axis=0)
    # Rounded in units of the axes, so that points that differ only by rounding are equal.
    unit, inverse = np.unique(np.round((scaled - low) / size, 6), axis=0, return_inverse=True)
    means = np.bincount(inverse.ravel(), values) / np.bincount(inverse.ravel())
    if len(unit) < MIN_INTERPOLATED or np.linalg.matrix_rank(unit - unit.mean(0), tol=1e-3) < 2:
        return None
    # Linear, and only inside the hull: a smoother surface would show optima at points that were not tried.
    line = np.linspace(0, 1, GRID)
    surface = LinearTriInterpolator(Triangulation(*unit.T), means)(*np.meshgrid(line, line))
    columns, rows = (np.exp(low[i] + line * size[i]) if logs[i] else low[i] + line * size[i] for i in (0, 1))
    return columns, rows, surface


def _label_given_points(
    axes: Axes, summary: StudySummary, x_name: str, y_name: str, places: Sequence[tuple[float, float]]
) -> None:
    """Label each given point of the study with its value, at a position that avoids all `places`."""
    for given in summary.given:
        if x_name not in given or y_name not in given:
            continue
        place = (float(given[x_name]), float(given[y_name]))
        text = "given point"
        for trial in summary.trials:
            value = summary.value(trial)
            if value is not None and (trial.params.get(x_name), trial.params.get(y_name)) == place:
                text += f": {show_metric(summary.objectives[0], value)}"
                break
        axes.scatter(*place, s=170, marker="D", facecolors="none", edgecolors=INK, linewidths=1.4, zorder=4)
        right, above = _free_side(axes, places, place, len(text))
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes.annotate(text, place, xytext=(12 if right else -12, above), textcoords="offset points", fontsize=9,
                      color=INK, bbox=box, zorder=6, va="center", ha="left" if right else "right")  # fmt: skip


def _free_side(
    axes: Axes, places: Sequence[tuple[float, float]], place: tuple[float, float], length: int
) -> tuple[bool, int]:
    """The side (True for right) and upward offset in points at which a label covers the fewest marks.

    Args:
        axes: The axes, with their limits.
        places: Coordinates of all marks.
        place: The labelled point.
        length: Number of characters of the label.

    """
    figure = axes.get_figure()
    assert figure is not None
    unit = figure.dpi / 72  # pixels of a point
    left, right_end = axes.transAxes.transform([(0, 0), (1, 0)])[:, 0]
    pixels = axes.transData.transform(places)
    at_x, at_y = axes.transData.transform(place)
    costs = {}
    for right, above in itertools.product((True, False), (0, 16, -16)):
        start = at_x + unit * (8 if right else -16 - 6 * length)
        end = start + unit * (8 + 6 * length)
        middle = at_y + unit * above
        covered = (start < pixels[:, 0]) & (pixels[:, 0] < end) & (np.abs(pixels[:, 1] - middle) < 12 * unit)
        costs[right, above] = covered.sum() + 100 * (start < left or end > right_end)
    return min(costs, key=lambda side: costs[side])
