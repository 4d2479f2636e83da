"""A study's figures as images: history, importance, map of two parameters, all parameters, Pareto front."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_mnist.sweeps.results.heat_map import heat_map
from lit_mnist.sweeps.results.parallel import parallel
from lit_mnist.sweeps.results.style import BEST, COLOUR, ENDED, INK, QUIET, label_value, new_figure, style_value
from lit_mnist.sweeps.study.summary import StudySummary


def draw(found: StudySummary, shares: Mapping[str, float], pair: tuple[str, str] | None) -> dict[str, Figure]:
    """Every figure that the study has enough trials for, by name.

    Args:
        found: A study with a complete trial at least.
        shares: The importance of each parameter; empty where it is not known.
        pair: The parameters of the map; None without one.

    """
    figures = {"history": history(found)}
    if shares:
        figures["importances"] = importance(found, shares)
        figures["parallel_coordinates"] = parallel(found, list(shares))
    if pair is not None:
        figures["heat_map"] = heat_map(found, *pair)
    if len(found.objectives) == 2:
        figures["pareto_front"] = pareto_front(found)
    return figures


def history(found: StudySummary) -> Figure:
    """The first goal of each trial, the best so far as a line; pruned and failed trials below."""
    figure = new_figure(8, 4.2, f"{found.name}: {found.objectives[0]}, trial by trial")
    axes = figure.subplots()
    done = [(trial.number, trial.values[0]) for trial in found.complete if math.isfinite(trial.values[0])]
    if done:
        numbers, values = zip(*done, strict=True)
        best = (np.maximum if found.upwards[0] else np.minimum).accumulate(values)
        axes.step(numbers, best, where="post", color=BEST, linewidth=1.5, label="best so far", zorder=2)
        axes.scatter(numbers, values, s=26, color=COLOUR, label="complete", zorder=3)
        style_value(axes, "y", found.objectives[0], values)
    for state, marker, colour, label in ENDED:
        if ended := [trial.number for trial in found.trials if trial.state == state]:
            # Below the values, for these have none that compares.
            axes.scatter(ended, [0.03] * len(ended), s=30, marker=marker, color=colour, label=label,
                         transform=axes.get_xaxis_transform())  # fmt: skip
    axes.margins(y=0.12)
    axes.set_xlim(-0.5, len(found.trials) - 0.5)
    axes.set(xlabel="trial", ylabel=found.objectives[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def importance(found: StudySummary, shares: Mapping[str, float]) -> Figure:
    """A bar for each parameter's share of the first goal's differences."""
    figure = new_figure(8, 1.4 + 0.42 * len(shares), f"{found.name}: what {found.objectives[0]} depends on")
    axes = figure.subplots()
    names = list(shares)[::-1]
    bars = axes.barh(names, [shares[name] for name in names], color=COLOUR, height=0.6)
    axes.bar_label(bars, [f"{100 * shares[name]:.0f} %" for name in names], padding=4, color=INK)
    axes.set(xlim=(0, 1.12 * max(shares.values())), xticks=[])
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def pareto_front(found: StudySummary) -> Figure:
    """Both objectives of each trial, with those that no other beats in both joined by a line."""
    figure = new_figure(7, 4.6, f"{found.name}: {found.objectives[0]} against {found.objectives[1]}")
    axes = figure.subplots()
    every = _finite([trial.values for trial in found.complete])
    best = found.best()
    front = sorted(_finite([trial.values for trial in best]))
    if every:
        x, y = zip(*every, strict=True)
        axes.scatter(x, y, s=24, color=QUIET, alpha=0.6, label="trials")
        style_value(axes, "x", found.objectives[0], [x for x, _ in every])
        style_value(axes, "y", found.objectives[1], [y for _, y in every])
    if front:
        x, y = zip(*front, strict=True)
        axes.plot(x, y, color=BEST, linewidth=1.2, marker="o", markersize=6, label="Pareto front")
        for trial in best[:: max(1, len(best) // 8)]:
            text = f"trial {trial.number}"
            axes.annotate(text, trial.values, xytext=(6, 6), textcoords="offset points", fontsize=8)
    x_label, y_label = (label_value(*goal) for goal in zip(found.objectives, found.upwards, strict=True))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(0.1)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _finite(values: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(pair[0], pair[1]) for pair in values if all(map(math.isfinite, pair))]
