"""Static figures of a study: history, parameter importances, parallel coordinates, Pareto front.

`optuna.visualization.matplotlib` offers the same four. They were rendered and compared with these (Optuna 5.0):

- its history leaves out pruned and failed trials, and with several objectives the line of the best value;
- its parallel coordinates print tick labels across the lines, and logarithmic ticks on top of each other;
- its Pareto front has neither trial numbers nor logarithmic axes, so parameter counts crowd into a corner;
- its importances give a share to parameters that never varied;
- all of them draw with pyplot and call `plt.style.use("ggplot")`, which changes every later figure of the process.

The interactive page (`html.py`) is drawn by Optuna.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.sweeps.study.summary import StudySummary
from lit_mnist.tracking.queries.metrics import is_share

INK, GREY, BLUE, ORANGE, PINK = "#222222", "#8a8a8a", "#0072B2", "#D55E00", "#CC79A7"
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")
# Viridis without its brightest end, which is hard to see on white.
COLOUR_MAP = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.94, 256)))
NO_VALUE_MARKERS = ((TrialState.PRUNED, "v", GREY, "pruned"), (TrialState.FAIL, "x", PINK, "failed"))
"""State, marker, colour and label of trials that ended without a value."""
MAX_PARALLEL_AXES = 10
PARALLEL_TICKS = 5


def history(summary: StudySummary) -> Figure:
    """First objective of each trial with a line for the best so far; pruned and failed trials at the bottom."""
    metric = summary.objectives[0]
    figure = new_figure(8, 4.2, f"{summary.name}: {metric} by trial")
    axes = figure.subplots()
    points = [(trial.number, trial.values[0]) for trial in summary.complete if math.isfinite(trial.values[0])]
    if points:
        numbers, values = zip(*points, strict=True)
        best = (np.maximum if summary.upwards[0] else np.minimum).accumulate(values)
        axes.step(numbers, best, where="post", color=ORANGE, linewidth=1.5, label="best so far", zorder=2)
        axes.scatter(numbers, values, s=26, color=BLUE, label="complete", zorder=3)
        format_value_axis(axes, "y", metric, values)
    for state, marker, colour, label in NO_VALUE_MARKERS:
        if ended := [trial.number for trial in summary.trials if trial.state == state]:
            # They have no value to compare, so their height is given in axes coordinates.
            axes.scatter(ended, [0.03] * len(ended), s=30, marker=marker, color=colour, label=label,
                         transform=axes.get_xaxis_transform())  # fmt: skip
    axes.margins(y=0.12)
    axes.set_xlim(-0.5, len(summary.trials) - 0.5)
    axes.set(xlabel="trial", ylabel=label_with_direction(metric, summary.upwards[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def importance_bars(summary: StudySummary, importances: Mapping[str, float]) -> Figure:
    """One bar per parameter: the share of the first objective's variation that it explains."""
    figure = new_figure(
        8, 1.4 + 0.42 * len(importances), f"{summary.name}: parameter importances for {summary.objectives[0]}"
    )
    axes = figure.subplots()
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, [f"{100 * importances[name]:.0f} %" for name in names], padding=4, color=INK)
    axes.set(xlim=(0, 1.12 * max(importances.values())), xticks=[])
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def parallel_coordinates(summary: StudySummary, names: Sequence[str]) -> Figure:
    """One line per complete trial across one vertical axis per parameter; better trials are drawn on top.

    Args:
        summary: The study.
        names: Parameters, most important first. Only the first ten are shown.

    """
    names = names[:MAX_PARALLEL_AXES]
    figure = new_figure(max(6.5, 1.7 * len(names) + 2), 4.8, f"{summary.name}: all parameters")
    axes = figure.subplots()
    trials = [trial for trial in summary.complete if math.isfinite(trial.values[0])]
    norm = colour_scale(summary.objectives[0], [trial.values[0] for trial in trials])
    heights = [_draw_parallel_axis(axes, x, name, trials) for x, name in enumerate(names)]
    for rank, trial in enumerate(sorted(trials, key=lambda trial: -summary.cost(trial)[0])):
        # A conditional parameter is missing in some trials: NaN leaves a gap in the line.
        line = [height.get(trial.params.get(name), np.nan) for name, height in zip(names, heights, strict=True)]
        style = {"color": COLOUR_MAP(norm(trial.values[0])), "linewidth": 1.4, "marker": "o", "markersize": 3}
        axes.plot(range(len(names)), line, zorder=1 + rank / len(trials), **style)
    axes.set_xticks(range(len(names)), names, rotation=12 if len(names) > 4 else 0, fontsize=9, parse_math=False)
    axes.set(yticks=[], xlim=(-0.3, len(names) - 0.35), ylim=(-0.04, 1.04))
    axes.tick_params(bottom=False)
    axes.spines[:].set_visible(False)
    add_colour_bar(axes, norm, summary.objectives[0], summary.upwards[0])
    return figure


def _draw_parallel_axis(axes: Axes, x: int, name: str, trials: Sequence[FrozenTrial]) -> dict[Any, float]:
    """Draw a parameter's vertical axis at `x`; returns the height, 0 to 1, of each of its values."""
    axes.axvline(x, color=GREY, linewidth=0.8, zorder=0)
    having = [trial for trial in trials if name in trial.params]
    distribution, values = having[0].distributions[name], [trial.params[name] for trial in having]
    if isinstance(distribution, CategoricalDistribution):
        choices = sorted(set(values), key=list(distribution.choices).index)
        heights = {value: n / max(len(choices) - 1, 1) for n, value in enumerate(choices)}
        ticks = {str(value): height for value, height in heights.items()}
    else:
        scale = math.log if getattr(distribution, "log", False) else float
        low, high = scale(min(values)), scale(max(values))
        heights = {value: (scale(value) - low) / (high - low) if high > low else 0.5 for value in values}
        ends = np.linspace(low, high, PARALLEL_TICKS if high > low else 1)
        ticks = {f"{math.exp(t) if scale is math.log else t:.3g}": (t - low) / ((high - low) or 1) for t in ends}
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for text, height in ticks.items():
        axes.text(x + 0.03, height, text, fontsize=8, color=INK, va="center", zorder=3, bbox=box, parse_math=False)
    return heights


def pareto_front(summary: StudySummary) -> Figure:
    """Both objectives of each trial; the trials that no other trial dominates are joined by a line."""
    figure = new_figure(7, 4.6, f"{summary.name}: {summary.objectives[0]} against {summary.objectives[1]}")
    axes = figure.subplots()
    finite = [trial for trial in summary.complete if all(map(math.isfinite, trial.values))]
    if finite:
        x, y = zip(*(trial.values for trial in finite), strict=True)
        axes.scatter(x, y, s=24, color=GREY, alpha=0.6, label="trials")
        format_value_axis(axes, "x", summary.objectives[0], x)
        format_value_axis(axes, "y", summary.objectives[1], y)
    front = [trial for trial in summary.best() if all(map(math.isfinite, trial.values))]
    if front:
        x, y = zip(*sorted(trial.values for trial in front), strict=True)
        axes.plot(x, y, color=ORANGE, linewidth=1.2, marker="o", markersize=6, label="Pareto front")
        # At most about eight labels, or they overlap.
        for trial in front[:: max(1, len(front) // 8)]:
            text = f"trial {trial.number}"
            axes.annotate(text, trial.values, xytext=(6, 6), textcoords="offset points", fontsize=8)
    x_label, y_label = (
        label_with_direction(metric, up) for metric, up in zip(summary.objectives, summary.upwards, strict=True)
    )
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(0.1)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# Style shared with the heat map.


def new_figure(width: float, height: float, title: str) -> Figure:
    """Create an empty figure of `width` × `height` inches.

    It is a plain `Figure` without pyplot, so nothing has to be closed and no backend is chosen.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    # A dollar sign in a study's name is not a formula.
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    return figure


def label_with_direction(metric: str, upwards: bool) -> str:
    """Axis label: the metric and which direction is better."""
    return f"{metric} ({'higher' if upwards else 'lower'} is better)"


def format_value_axis(axes: Axes, which: Literal["x", "y"], metric: str, values: Sequence[float]) -> None:
    """Format an axis of objective values: percent for shares, logarithmic for values over several decades."""
    if is_share(metric):
        (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(PERCENT)
    elif _spans_decades(values):
        use_log_axis(axes, which, values)


def use_log_axis(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Make an axis logarithmic, with plain numbers instead of powers of ten as tick labels."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    few_decades = max(values) < 300 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def colour_scale(metric: str, values: Sequence[float]) -> Normalize:
    """Map the range of `values` to colours, logarithmically where they span decades."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return LogNorm(low, high) if not is_share(metric) and _spans_decades(values) else Normalize(low, high)


def add_colour_bar(axes: Axes, norm: Normalize, metric: str, upwards: bool) -> None:
    """Add a colour bar for the metric beside the axes."""
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(
        ScalarMappable(norm, COLOUR_MAP), ax=axes, pad=0.02, format=PERCENT if is_share(metric) else None
    )
    bar.set_label(label_with_direction(metric, upwards))
    bar.outline.set_visible(False)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 20 * min(values)
