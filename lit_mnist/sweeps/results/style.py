"""How a study's figures look."""

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from optuna.trial import TrialState

from lit_mnist.tracking.queries.metrics import is_share

Which = Literal["x", "y"]
INK, QUIET, COLOUR, BEST, BAD = "#222222", "#8a8a8a", "#0072B2", "#D55E00", "#CC79A7"
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")
ENDED = ((TrialState.PRUNED, "v", QUIET, "pruned"), (TrialState.FAIL, "x", BAD, "failed"))
"""How trials without a value are marked."""
# Without its brightest end, which is hard to see on white.
MAP = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.94, 256)))


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, its sides in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    return figure


def label_value(metric: str, upwards: bool) -> str:
    """The metric's name, and which way is better."""
    return f"{metric} ({'higher' if upwards else 'lower'} is better)"


def is_wide(values: Sequence[float]) -> bool:
    """Whether the values need a logarithmic axis."""
    return min(values) > 0 and max(values) > 20 * min(values)


def style_value(axes: Axes, which: Which, metric: str, values: Sequence[float]) -> None:
    """Shares in percent, and values over decades on a logarithmic axis."""
    if is_share(metric):
        _axis(axes, which).set_major_formatter(PERCENT)
    elif is_wide(values):
        style_log(axes, which, values)


def style_log(axes: Axes, which: Which, values: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are read as plain numbers."""
    axes.set(xscale="log") if which == "x" else axes.set(yscale="log")
    axis, few_decades = _axis(axes, which), max(values) < 300 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _axis(axes: Axes, which: Which) -> Axis:
    return axes.xaxis if which == "x" else axes.yaxis


def colour_scale(metric: str, values: Sequence[float]) -> Normalize:
    """From the smallest to the largest value."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return LogNorm(low, high) if not is_share(metric) and is_wide(values) else Normalize(low, high)


def colour_bar(axes: Axes, norm: Normalize, metric: str, upwards: bool) -> None:
    """What the colours mean, beside the axes."""
    figure = axes.get_figure()
    assert figure is not None
    numbers = PERCENT if is_share(metric) else None
    bar = figure.colorbar(ScalarMappable(norm, MAP), ax=axes, pad=0.02, format=numbers)
    bar.set_label(label_value(metric, upwards))
    bar.outline.set_visible(False)
