"""All parameters of a study beside one another."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from lit_mnist.sweeps.results.style import INK, MAP, QUIET, colour_bar, colour_scale, new_figure
from lit_mnist.sweeps.study.summary import StudySummary

MOST = 10
"""Parameters that stand beside one another."""
TICKS = 5


def parallel(found: StudySummary, names: Sequence[str]) -> Figure:
    """A line for each trial across the axes of its parameters, the better drawn last.

    Args:
        found: The study.
        names: Its parameters, the most important first.

    """
    names = names[:MOST]
    figure = new_figure(max(6.5, 1.7 * len(names) + 2), 4.8, f"{found.name}: all parameters")
    axes = figure.subplots()
    usable = [trial for trial in found.complete if math.isfinite(trial.values[0])]
    norm = colour_scale(found.objectives[0], [trial.values[0] for trial in usable])
    heights = {name: _axis(axes, i, name, usable) for i, name in enumerate(names)}
    for rank, trial in enumerate(sorted(usable, key=lambda trial: -found.cost(trial)[0])):
        line = [heights[name].get(trial.params.get(name), np.nan) for name in names]
        style = {"color": MAP(norm(trial.values[0])), "linewidth": 1.4, "marker": "o", "markersize": 3}
        axes.plot(range(len(names)), line, zorder=1 + rank / len(usable), **style)
    axes.set_xticks(range(len(names)), names, rotation=12 if len(names) > 4 else 0, fontsize=9, parse_math=False)
    axes.set(yticks=[], xlim=(-0.3, len(names) - 0.35), ylim=(-0.04, 1.04))
    axes.tick_params(bottom=False)
    axes.spines[:].set_visible(False)
    colour_bar(axes, norm, found.objectives[0], found.upwards[0])
    return figure


def _axis(axes: Axes, i: int, name: str, trials: Sequence[FrozenTrial]) -> dict[Any, float]:
    """Draw the axis number `i`; returns the height of each value on it."""
    axes.axvline(i, color=QUIET, linewidth=0.8, zorder=0)
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
        ends = np.linspace(low, high, TICKS if high > low else 1)
        ticks = {f"{math.exp(t) if scale is math.log else t:.3g}": (t - low) / ((high - low) or 1) for t in ends}
    for text, height in ticks.items():
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
        axes.text(i + 0.03, height, text, fontsize=8, color=INK, va="center", zorder=3, bbox=box, parse_math=False)
    return heights
