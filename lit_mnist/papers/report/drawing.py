"""What the papers' figures have in common."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lit_mnist.tracking.queries.statistics import Summary

Points = Sequence[tuple[int, float]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind can tell apart."""


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, its sides in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def bars(
    numbers: Mapping[str, Summary], title: str, ylabel: str, lines: Mapping[str, float] | None = None
) -> Figure:
    """A bar for each number with its interval, its seeds as points, and the paper's figures as lines.

    Args:
        numbers: By their labels.
        title: Of the figure.
        ylabel: What is measured; one that ends in "%" has shares as its numbers.
        lines: Values to compare with, by their labels.

    """
    figure = new_figure(max(5.5, 1.1 * len(numbers) + 2.5), 4.2, title)
    axes = figure.subplots()
    for i, (colour, summary) in enumerate(zip(_colours(len(numbers)), numbers.values(), strict=True)):
        axes.bar(i, summary.mean, yerr=summary.interval, capsize=4, color=colour, alpha=0.75, width=0.65)
        axes.scatter([i] * len(summary.values), summary.values, color="#222222", s=14, zorder=3)
    for value, (label, height) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        axes.axhline(height, color="#222222", linewidth=1, linestyle=value, label=label)
    axes.set_xticks(range(len(numbers)), list(numbers), fontsize=8)
    axes.set_ylabel(ylabel)
    _finish(axes, percent=ylabel.endswith("%"), legend=bool(lines))
    return figure


def marks(
    series: Mapping[str, Sequence[Summary]], places: Iterable[object], title: str, xlabel: str, ylabel: str
) -> Figure:
    """For each name a mark with its interval at each place, the places evenly spaced.

    A `ylabel` that ends in "%" has shares as its numbers.
    """
    figure = new_figure(7.5, 4.2, title)
    axes = figure.subplots()
    labels = [str(place) for place in places]
    for i, (colour, (name, summaries)) in enumerate(zip(_colours(len(series)), series.items(), strict=True)):
        at = [x + 0.12 * (i - (len(series) - 1) / 2) for x in range(len(labels))]
        intervals = [summary.interval or 0.0 for summary in summaries]
        means = [summary.mean for summary in summaries]
        axes.errorbar(at, means, yerr=intervals, fmt="o", capsize=3, color=colour, label=name)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _finish(axes, percent=ylabel.endswith("%"))
    return figure


def curves(histories: Mapping[str, Sequence[Points]], title: str, ylabel: str, log: bool = False) -> Figure:
    """A line for each name: the mean over the seeds' points of the same step, with their range around it."""
    figure = new_figure(7.5, 4.2, title)
    axes = figure.subplots()
    for colour, (name, seeds) in zip(_colours(len(histories)), histories.items(), strict=True):
        steps, values = _aligned(seeds)
        axes.plot(steps, values.mean(0), color=colour, linewidth=1.3, label=name)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="optimizer step", ylabel=ylabel)
    if log:
        axes.set_yscale("log")
    _finish(axes)
    return figure


def _finish(axes: Axes, percent: bool = False, legend: bool = True) -> None:
    """What every panel has: a quiet frame, percent where shares are shown, and the names."""
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    if legend:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _aligned(seeds: Sequence[Points]) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all seeds have, and their values (seeds, steps)."""
    shared = sorted(set.intersection(*(set(dict(points)) for points in seeds)))
    return np.array(shared), np.array([[dict(points)[step] for step in shared] for points in seeds])


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
