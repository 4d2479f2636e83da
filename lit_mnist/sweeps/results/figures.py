"""Figures of a study: history, learning curves, importances, slices, parallel coordinates, Pareto front.

`optuna.visualization.matplotlib` has most of them too, but with these disadvantages (compared with Optuna 5.0):

- its history does not show pruned and failed trials, or, with several objectives, the line of the best value;
- its parallel coordinates print tick labels over the lines, and logarithmic ticks on top of each other;
- its Pareto front has neither trial numbers nor logarithmic axes, so parameter counts are crowded in a corner;
- its importances use only complete trials, and include parameters that never varied;
- all of them use pyplot and call `plt.style.use("ggplot")`, which changes every later figure of the process.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.sweeps.results.heat_map import heat_map, heat_map_parameters
from lit_mnist.sweeps.results.importances import Importances, estimate_importances
from lit_mnist.sweeps.results.plotting import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PINK,
    Scale,
    add_colour_bar,
    add_legend,
    address,
    apply_value_axis,
    colour_map,
    colour_scale,
    label_with_direction,
    mark_trials,
    new_figure,
    scale_of,
    varied_names,
)
from lit_mnist.sweeps.study.summary import StudySummary, is_allowed, point, show_short

MAX_PARALLEL_AXES = 10
MAX_SLICES = 9
SLICE_COLUMNS = 3
PARALLEL_TICKS = 6
MAX_LABELLED = 12
"""Maximum number of trials of a Pareto front that are labelled with their parameters."""


def draw_figures(summary: StudySummary) -> dict[str, Figure]:
    """Draw all figures for which the study has enough trials; returns them by name.

    Args:
        summary: A study with at least one trial that is complete or was pruned after its first validation.

    """
    # Parameters are sorted by importance, followed by those without one; the page has the figures in this order.
    importances = estimate_importances(summary)
    varied = varied_names([trial for trial, _ in _values(summary)])
    names = list(importances.shares) if importances is not None else []
    names += [name for name in varied if name not in names]
    drawn = {"history": history(summary)}
    if (pair := heat_map_parameters(summary, names)) is not None:
        drawn["heat_map"] = heat_map(summary, *pair)
    if len(summary.objectives) == 2:
        drawn["pareto_front"] = pareto_front(summary)
    if (curves := learning_curves(summary)) is not None:
        drawn["learning_curves"] = curves
    if importances is not None:
        drawn["importances"] = importance_bars(summary, importances)
    if names:
        drawn["slices"] = slices(summary, names)
    if len(names) > 2:
        drawn["parallel_coordinates"] = parallel_coordinates(summary, names)
    return drawn


def history(summary: StudySummary) -> Figure:
    """First objective of each trial with a line for the best so far; failed trials are at the bottom."""
    metric = summary.objectives[0]
    figure = new_figure(8, 4.2, f"{summary.name}: {metric} by trial")
    axes = figure.subplots()
    # Trials with a value (pruned ones at their last value), then the line of the best value, then failed trials.
    places = [(trial, float(trial.number), value) for trial, value in _values(summary)]
    if places:
        apply_value_axis(axes, "y", metric, [value for _, _, value in places])
        mark_trials(axes, summary, places)
    allowed = [(trial.number, trial.values[0]) for trial in summary.complete if is_allowed(trial)]
    # Without infinite values, which would stay the best value forever.
    allowed = [(number, value) for number, value in allowed if math.isfinite(value)]
    if allowed:
        numbers, values = zip(*allowed, strict=True)
        best = (np.maximum if summary.upwards[0] else np.minimum).accumulate(values)
        axes.step(
            (*numbers, len(summary.trials) - 0.5), (*best, best[-1]),
            where="post", color=ORANGE, linewidth=1.3, label="best so far", zorder=1,
        )  # fmt: skip
    if failed := [trial for trial in summary.trials if trial.state == TrialState.FAIL]:
        # Failed trials have no value, so their height is given in axes coordinates.
        at = [trial.number for trial in failed]
        drawn = axes.scatter(at, [0.03] * len(failed), s=30, marker="x", color=PINK, label="failed",
                             transform=axes.get_xaxis_transform())  # fmt: skip
        drawn.set_urls([address(trial) for trial in failed])
    margin = 0.02 * len(summary.trials)  # for the ring around a last trial that is the best
    axes.set_xlim(-0.5 - margin, max(len(summary.trials), 2) - 0.5 + margin)
    axes.set(xlabel="trial", ylabel=label_with_direction(metric, summary.upwards[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def learning_curves(summary: StudySummary) -> Figure | None:
    """First objective of every trial over its validations; better trials are darker, pruned ones end hollow.

    None if no trial reported more than one validation, or several objectives or seeds are reported instead.
    """
    curves = []
    for trial in summary.trials:
        reported = sorted(trial.intermediate_values.items())
        points = [(step + 1, value) for step, value in reported if math.isfinite(value)]
        if points:
            curves.append((trial, points))
    # Values of seeds have no meaningful order, and a single validation is not a curve.
    if summary.steps_are_seeds or max((len(points) for _, points in curves), default=0) < 2:
        return None
    metric, up = summary.objectives[0], summary.upwards[0]
    seed = f" with seed {summary.seeds[0]}" if len(summary.seeds) > 1 else ""
    figure = new_figure(8, 4.6, f"{summary.name}: learning curves of {len(curves)} trials{seed}")
    axes = figure.subplots()
    apply_value_axis(axes, "y", metric, [value for _, points in curves for _, value in points])
    # Coloured by the last value, as in the other figures.
    norm = colour_scale(metric, [points[-1][1] for _, points in curves])
    # Better curves are drawn last, and so on top.
    curves.sort(key=lambda curve: curve[1][-1][1], reverse=not up)
    for rank, (trial, points) in enumerate(curves):
        x, y = zip(*points, strict=True)
        (line,) = axes.plot(x, y, color=colour_map(up)(norm(y[-1])), linewidth=1.2, zorder=2 + rank / len(curves))
        line.set_url(address(trial))
    # Marked at the last validation; the value of an objective `best/…` may be at another point of the curve.
    ended = [(trial, float(points[-1][0]), points[-1][1]) for trial, points in curves]
    mark_trials(axes, summary, [end for end in ended if end[0].state.is_finished()], norm, index=None)
    axes.set(xlabel="validation", ylabel=label_with_direction(metric.removeprefix("best/"), up))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    add_colour_bar(axes, norm, metric.removeprefix("best/"), up)
    add_legend(axes)
    return figure


def importance_bars(summary: StudySummary, importances: Importances) -> Figure:
    """One bar per parameter: its part in what distinguishes the best third of the trials from all."""
    shares = importances.shares
    figure = new_figure(8, 1.7 + 0.42 * len(shares), f"{summary.name}: importances for {summary.objectives[0]}")
    axes = figure.subplots()
    names = list(shares)[::-1]  # bars are drawn from the bottom up
    bars = axes.barh(range(len(names)), [shares[name] for name in names], color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.bar_label(bars, [f"{100 * shares[name]:.0f} %" for name in names], padding=4, color=INK)
    axes.set(xlim=(0, 1.12 * max(shares.values())), xticks=[])
    note = f"what distinguishes the best third from all;\n{importances.source}"
    axes.set_xlabel(note, fontsize=9, color=GREY, loc="left")
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def slices(summary: StudySummary, names: Sequence[str]) -> Figure:
    """The first objective over each parameter by itself, at most nine of them, most important first."""
    names, values = names[:MAX_SLICES], _values(summary)
    # Four panels as a square, otherwise rows of three.
    columns = 2 if len(names) == 4 else min(len(names), SLICE_COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(
        2 + 3.2 * columns, 0.8 + 2.9 * rows, f"{summary.name}: {summary.objectives[0]} by parameter"
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    apply_value_axis(panels[0], "y", summary.objectives[0], [value for _, value in values])
    for axes, name in zip(panels, names, strict=False):
        # Only trials that have the parameter, since it may be conditional.
        having = [(trial, value) for trial, value in values if name in trial.params]
        scale = scale_of(name, [trial for trial, _ in having])
        places = [(trial, scale.place(trial.params[name]), value) for trial, value in having]
        mark_trials(axes, summary, places, size=24)
        scale.apply(axes, "x")
        axes.spines[["top", "right"]].set_visible(False)
    # Hide unused panels in the last row.
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supylabel(label_with_direction(summary.objectives[0], summary.upwards[0]), fontsize=10)
    add_legend(panels[columns - 1])
    return figure


def parallel_coordinates(summary: StudySummary, names: Sequence[str]) -> Figure:
    """One line per trial across one vertical axis per parameter; the better trials are darker, and drawn on top.

    Args:
        summary: The study.
        names: Parameters, most important first. Only the first ten are shown.

    """
    names, values = names[:MAX_PARALLEL_AXES], _values(summary)
    title = f"{summary.name}: all parameters (dashed: pruned)"
    figure = new_figure(max(6.5, 1.7 * len(names) + 2), 4.8, title)
    axes = figure.subplots()
    norm = colour_scale(summary.objectives[0], [value for _, value in values])
    scales = [scale_of(name, [trial for trial, _ in values]) for name in names]
    for x, scale in enumerate(scales):
        _draw_parallel_axis(axes, x, scale)
    best = summary.best()[:1]
    # Better lines are drawn later, and so on top.
    values.sort(key=lambda pair: pair[1], reverse=not summary.upwards[0])
    for rank, (trial, value) in enumerate(values):
        # A conditional parameter is missing in some trials: NaN leaves a gap in the line.
        line = [
            scale.height(scale.place(trial.params[scale.name])) if scale.name in trial.params else np.nan
            for scale in scales
        ]
        is_pruned, is_best = trial.state == TrialState.PRUNED, trial in best
        (drawn,) = axes.plot(
            range(len(names)), line, color=colour_map(summary.upwards[0])(norm(value)),
            linewidth=3 if is_best else 1.3, linestyle=(0, (4, 2)) if is_pruned else "-",
            zorder=3 if is_best else 1 + rank / len(values),
        )  # fmt: skip
        drawn.set_url(address(trial))
        if is_best:
            axes.scatter(range(len(names)), line, s=110, facecolors="none", edgecolors=ORANGE, linewidths=1.8,
                         zorder=4)  # fmt: skip
    rotation = 15 if len(names) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=rotation, fontsize=9, parse_math=False)
    axes.set(yticks=[], xlim=(-0.3, len(names) - 0.35), ylim=(-0.05, 1.05))
    axes.tick_params(bottom=False)
    axes.spines[:].set_visible(False)
    add_colour_bar(axes, norm, summary.objectives[0], summary.upwards[0])
    return figure


def _draw_parallel_axis(axes: Axes, x: int, scale: Scale) -> None:
    """Draw a parameter's vertical axis at `x`."""
    axes.axvline(x, color=GREY, linewidth=0.8, zorder=0)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for text, height in scale.ticks(PARALLEL_TICKS).items():
        axes.text(x + 0.04, height, text, fontsize=8, color=INK, va="center", zorder=5, bbox=box, parse_math=False)


def pareto_front(summary: StudySummary) -> Figure:
    """Two objectives of each trial; those that no other trial dominates are joined, and labelled."""
    figure = new_figure(8, 5.2, f"{summary.name}: {summary.objectives[0]} against {summary.objectives[1]}")
    axes = figure.subplots()
    # Without pruned trials, which have at most one objective.
    finite = [trial for trial in summary.complete if all(map(math.isfinite, trial.values))]
    for which, index in (("x", 0), ("y", 1)):
        metric, up = summary.objectives[index], summary.upwards[index]
        if finite:
            apply_value_axis(axes, "x" if which == "x" else "y", metric, [trial.values[index] for trial in finite])
        axes.set(**{f"{which}label": label_with_direction(metric, up)})
    mark_trials(axes, summary, [(trial, *trial.values) for trial in finite], index=1, ring=False)
    for trial in finite:
        if (interval := summary.interval(trial, 0)) is not None:
            axes.errorbar(
                trial.values[0], trial.values[1], xerr=interval, color=GREY, linewidth=1, capsize=2, zorder=2
            )
    front = [trial for trial in summary.best() if trial in finite]
    front.sort(key=lambda trial: tuple(trial.values))
    if front:
        axes.plot(*zip(*(trial.values for trial in front), strict=True), color=ORANGE, linewidth=1.4, zorder=2.5,
                  marker="o", markersize=9, markerfacecolor="none", label="Pareto front")  # fmt: skip
    axes.margins(0.12)
    # In the coordinates of the axis, which may be logarithmic or logit.
    if front:  # space for the labels on the better side
        transform = axes.transScale.transform
        (low, _), (high, _) = transform([(axes.get_xlim()[0], 1), (axes.get_xlim()[1], 1)])
        wider = (low, high + 0.4 * (high - low)) if summary.upwards[0] else (low - 0.4 * (high - low), high)
        back = axes.transScale.inverted().transform
        axes.set_xlim(*(back((end, 0))[0] for end in wider))
    add_legend(axes)
    axes.spines[["top", "right"]].set_visible(False)
    _label_front(axes, summary, front)
    return figure


def _label_front(axes: Axes, summary: StudySummary, front: Sequence[FrozenTrial]) -> None:
    """Label trials of the front with their number and parameters, leaving out labels that would overlap."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout decides where the points are
    # As everywhere else: layer sizes as a list, not as the depth and width of which the search space is made.
    tried = [point(trial) for trial in summary.complete]
    varied = [name for name in dict.fromkeys(name for values in tried for name in values)
              if len({str(values.get(name)) for values in tried}) > 1]  # fmt: skip
    taken: list[tuple[float, float]] = []
    # Labels are on the better side of the front, where there are no trials.
    right, above = summary.upwards
    for trial in front:
        # In pixels, where labels overlap: about 150 wide and 14 high.
        x, y = axes.transData.transform(trial.values)
        if len(taken) >= MAX_LABELLED or any(abs(x - a) < 150 and abs(y - b) < 14 for a, b in taken):
            continue
        taken.append((x, y))
        values = point(trial)
        shown = show_short({name: values[name] for name in varied[:2] if name in values})
        axes.annotate(
            f"trial {trial.number}: {shown}" if shown else f"trial {trial.number}",
            trial.values, xytext=(8 if right else -8, 5 if above else -5), textcoords="offset points", fontsize=8,
            ha="left" if right else "right", va="bottom" if above else "top", color=INK, parse_math=False,
            zorder=6, bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def _values(summary: StudySummary) -> list[tuple[FrozenTrial, float]]:
    """The trials with a value of the first objective, by number; pruned trials with their last value."""
    found = [(trial, summary.value(trial)) for trial in summary.trials]
    return [(trial, value) for trial, value in found if value is not None]
