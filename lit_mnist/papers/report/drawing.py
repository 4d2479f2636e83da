"""Figures for several papers: bars, marks and curves, each with the spread over the seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lit_mnist.tracking.queries.statistics import Summary

if TYPE_CHECKING:
    from lit_mnist.papers.report.trained import TrainedStage

Points = Sequence[tuple[int, float]]
"""Step and value."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which can be distinguished with colour blindness."""


def new_figure(width: float, height: float, title: str) -> Figure:
    """Create an empty figure of `width` × `height` inches, without pyplot."""
    # pyplot would keep every figure in a global list, and choose a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def bars(
    numbers: Mapping[str, Summary],
    title: str,
    ylabel: str,
    lines: Mapping[str, float] | None = None,
    paper: Mapping[str, float] | None = None,
) -> Figure:
    """Draw a bar with its 95 % interval for each number, its seeds as points, and the values to compare with.

    Args:
        numbers: Numbers by label.
        title: Title of the figure.
        ylabel: Label of the axis; if it ends in "%", the numbers are shares and shown in percent.
        lines: Values to compare all numbers with, by label, at most three.
        paper: The paper's values for single numbers, by the label of the number.

    """
    figure = new_figure(max(5.5, 1.1 * len(numbers) + 2.5), 4.2, title)
    axes = figure.subplots()
    # A bar for the mean, and every seed as a point, since with three seeds the interval alone is not informative.
    # Without black, on which the seeds would not be seen.
    for i, (colour, summary) in enumerate(zip(cycle(COLOURS[:-1]), numbers.values(), strict=False)):
        axes.bar(i, summary.mean, yerr=summary.interval, capsize=4, color=colour, alpha=0.75, width=0.65)
        axes.scatter([i] * len(summary.values), summary.values, color="#222222", s=14, zorder=3)
    for style, (label, height) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        axes.axhline(height, color="#222222", linewidth=1, linestyle=style, label=label)
    if paper:
        # One call for all values, so that the legend has "paper" once. Nothing is drawn where the value is NaN.
        heights = [paper.get(label, math.nan) for label in numbers]
        left, right = [i - 0.42 for i in range(len(numbers))], [i + 0.42 for i in range(len(numbers))]
        axes.hlines(heights, left, right, color="#222222", linewidth=2, label="paper")
    axes.set_xticks(range(len(numbers)), list(numbers), fontsize=8)
    axes.set_ylabel(ylabel)
    finish(axes, percent=ylabel.endswith("%"), legend=bool(lines or paper))
    return figure


def marks(
    series: Mapping[str, Sequence[Summary]], places: Iterable[object], title: str, xlabel: str, ylabel: str
) -> Figure:
    """Draw a mark with its 95 % interval for each series at each place.

    Args:
        series: One number for each place, by label.
        places: Labels of the horizontal axis, drawn at even distances.
        title: Title of the figure.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis; if it ends in "%", the numbers are shares and shown in percent.

    """
    figure = new_figure(7.5, 4.2, title)
    axes = figure.subplots()
    # Even distances, since for example batch sizes would be crowded at the left of a linear axis.
    labels = [str(place) for place in places]
    for i, (colour, (name, summaries)) in enumerate(zip(cycle(COLOURS), series.items(), strict=False)):
        # Series are drawn side by side, so that their intervals do not cover each other.
        x = [place + 0.12 * (i - (len(series) - 1) / 2) for place in range(len(labels))]
        means, intervals = [s.mean for s in summaries], [s.interval or 0.0 for s in summaries]
        axes.errorbar(x, means, yerr=intervals, fmt="o", capsize=3, color=colour, label=name)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    finish(axes, percent=ylabel.endswith("%"))
    return figure


def curves(
    histories: Mapping[str, Sequence[Points]],
    title: str,
    ylabel: str,
    log: bool = False,
    paper: tuple[float, float] | None = None,
) -> Figure:
    """Draw the mean over the seeds as a line, and their range around it.

    Args:
        histories: One history per seed for each label. Only steps that all seeds have in common are drawn.
        title: Title of the figure.
        ylabel: Label of the vertical axis; if it ends in "%", the values are shares and shown in percent.
        log: True for a logarithmic vertical axis.
        paper: Step and value of a number of the paper, which is marked.

    """
    figure = new_figure(7.5, 4.2, title)
    axes = figure.subplots()
    for colour, (name, seeds) in zip(cycle(COLOURS), histories.items(), strict=False):
        # Seeds may end at different steps, for example with early stopping.
        by_step = [dict(points) for points in seeds]
        steps = sorted(set.intersection(*map(set, by_step)))
        values = np.array([[points[step] for step in steps] for points in by_step])
        axes.plot(steps, values.mean(0), color=colour, linewidth=1.3, label=name)
        # The range instead of an interval, since it needs no assumption with few seeds.
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    if paper is not None:
        axes.scatter(*paper, marker="*", s=110, color="#222222", zorder=3, label="paper")
    axes.set(xlabel="optimizer step; shaded: lowest to highest seed", ylabel=ylabel)
    if log:
        axes.set_yscale("log")
    finish(axes, percent=ylabel.endswith("%"))
    return figure


def training_curves(
    seeds: Sequence[Mapping[str, "TrainedStage"]],
    stages: Iterable[str],
    kind: str,
    title: str,
    ylabel: str,
    log: bool = False,
) -> Figure:
    """Draw training and validation `kind`, "loss" or "acc", of `stages` by step, over all seeds."""
    # Values per epoch, since validation has no others.
    several = len(stages := list(stages)) > 1
    histories = {
        f"{stage}, {label}" if several else label: [runs[stage].history(metric) for runs in seeds]
        for stage in stages
        for label, metric in (("training", f"train/{kind}_epoch"), ("validation", f"val/{kind}"))
    }
    return curves(histories, title, ylabel, log)


def finish(axes: Axes, percent: bool = False, legend: bool = True) -> None:
    """Apply the style that all figures share: shares in percent, a legend without a frame, two spines."""
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    if legend:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
