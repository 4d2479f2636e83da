"""Scales of a study's figures: where a parameter's values lie on an axis, and how an objective is laid out.

Every figure takes them from here, so that a parameter has the same axis wherever it is drawn.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, FuncNorm, ListedColormap, LogNorm, Normalize
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from lit_mnist.sweeps.search.parameters import is_number
from lit_mnist.tracking.queries.metrics import is_share

Which = Literal["x", "y"]
Kind = Literal["linear", "log", "logit", "places"]
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.6g} %")
# Viridis is perceptually uniform, and ordered alike for every kind of colour blindness. Its brightest quarter is
# left out: the last colour has a contrast of 2.1:1 on white, the end of the whole palette 1.3:1.
_DARK_IS_LOW = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.75, 256)))
_DARK_IS_HIGH = _DARK_IS_LOW.reversed()
LOGIT_TICKS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
CLOSEST_TO_CERTAIN = 1e-4
"""Distance from 0 and 1 at which shares are drawn that are nearer: a logit scale has no ends."""
LOG_RATIO = 8
"""Ratio of the largest to the smallest of numeric choices from which their axis is logarithmic."""


def colour_map(upwards: bool) -> Colormap:
    """The palette of all figures of a study, in which the better value is always the darker one."""
    return _DARK_IS_HIGH if upwards else _DARK_IS_LOW


@dataclass(frozen=True)
class Scale:
    """The axis of one parameter.

    Numbers lie on a linear or logarithmic axis, also where they are given as `choices`. All other values are evenly
    spaced in a sensible order: lists by length and then by size.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...]
    """The values that were tried, in the order of the axis."""
    low: float
    high: float
    """Ends of the search space, or beyond it those of the values that were tried."""

    @property
    def is_numeric(self) -> bool:
        """True if distances between the values mean something."""
        return self.kind != "places"

    def place(self, value: Any) -> float:
        """The coordinate of a value on matplotlib's axis."""
        return float(value) if self.is_numeric else float(self.values.index(value))

    def height(self, place: float) -> float:
        """A coordinate as a share of the axis, from 0 to 1."""
        low, high = self.low, self.high
        if self.kind == "log":
            low, high, place = math.log(low), math.log(high), math.log(place)
        return (place - low) / (high - low) if high > low else 0.5

    def ticks(self, count: int) -> dict[str, float]:
        """Labels with the height of each: the values that were tried, or `count` between the ends."""
        if not self.is_numeric or len(self.values) <= count:
            return {show_value(value): self.height(self.place(value)) for value in self.values}
        spaced = np.geomspace if self.kind == "log" else np.linspace
        return {f"{tick:.3g}": self.height(tick) for tick in spaced(self.low, self.high, count)}

    def apply(self, axes: Axes, which: Which) -> None:
        """Give matplotlib's axis the scale, limits, ticks and name."""
        axis = axes.xaxis if which == "x" else axes.yaxis
        if self.kind == "log":
            use_log_axis(axes, which, (self.low, self.high))
            margin = (self.high / self.low) ** 0.05
            limits = (self.low / margin, self.high * margin)
        elif self.kind == "linear":
            margin = 0.05 * (self.high - self.low) or 0.5
            limits = (self.low - margin, self.high + margin)
            axis.set_major_formatter(plain_numbers())
        else:
            limits = (-0.5, len(self.values) - 0.5)
            labels = [show_value(value) for value in self.values]
            axis.set_ticks(range(len(labels)), labels, parse_math=False)
            if which == "x" and max(map(len, labels)) > 6 and len(labels) > 3:
                axis.set_tick_params(rotation=25)
        axes.set(**{f"{which}lim": limits})
        (axes.set_xlabel if which == "x" else axes.set_ylabel)(self.name, parse_math=False)


def scale_of(name: str, trials: Sequence[FrozenTrial]) -> Scale:
    """The scale of a parameter that at least one of the trials has."""
    having = [trial for trial in trials if name in trial.params]
    distribution: Any = having[0].distributions[name]
    values = tuple(sorted({trial.params[name] for trial in having}, key=_sort_key))
    if not isinstance(distribution, CategoricalDistribution):
        kind: Kind = "log" if getattr(distribution, "log", False) else "linear"
        low, high = min(distribution.low, *values), max(distribution.high, *values)
    elif all(map(is_number, distribution.choices)):
        low, high = min(map(float, distribution.choices)), max(map(float, distribution.choices))
        kind = "log" if 0 < LOG_RATIO * low <= high else "linear"
    else:
        kind, low, high = "places", 0.0, float(len(values) - 1)
    return Scale(name, kind, values, float(low), float(high))


def varied_names(trials: Sequence[FrozenTrial]) -> list[str]:
    """The parameters that took more than one value, in the order of the search space."""
    tried: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            tried.setdefault(name, set()).add(repr(value))
    return [name for name, values in tried.items() if len(values) > 1]


def show_value(value: Any) -> str:
    """A parameter's value as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_metric(metric: str, value: float, interval: float | None = None) -> str:
    """An objective's value, in percent where it is a share, with half its confidence interval."""
    if is_share(metric):
        return f"{100 * value:.4g}" + ("" if interval is None else f" ± {100 * interval:.2g}") + " %"
    return f"{value:.4g}" + ("" if interval is None else f" ± {interval:.2g}")


def value_kind(metric: str, values: Sequence[float]) -> Kind:
    """How an objective's values are laid out.

    Logarithmic where they span decades, and logit for shares from far below to near 1: on a linear axis that begins
    with what was pruned at 10 %, 97 % and 98 % could not be told apart.
    """
    low, high = min(values), max(values)
    if is_share(metric):
        return "logit" if 0 <= low < 0.7 < 0.9 < high <= 1 else "linear"
    return "log" if low > 0 and high > 20 * low else "linear"


def apply_value_axis(axes: Axes, which: Which, metric: str, values: Sequence[float]) -> None:
    """Format an axis of an objective's `values`, of which there must be one."""
    axis, kind = axes.xaxis if which == "x" else axes.yaxis, value_kind(metric, values)
    if kind == "log":
        use_log_axis(axes, which, values)
    elif kind == "logit":
        axes.set(**{f"{which}scale": "logit"})
        ends = _logit(np.array([min(values), max(values)]))
        margin = 0.08 * (ends[1] - ends[0])
        axes.set(**{f"{which}lim": tuple(_share(ends + (-margin, margin)))})
        axis.set_major_locator(FixedLocator(LOGIT_TICKS))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_formatter(plain_numbers())
        axes.margins(**{which: 0.08})
    if is_share(metric):
        axis.set_major_formatter(PERCENT)


def use_log_axis(axes: Axes, which: Which, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with plain numbers instead of powers of ten as tick labels."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    few_decades = max(values) < 300 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def colour_scale(metric: str, values: Sequence[float]) -> Normalize:
    """Map the range of `values` to colours, laid out like an axis of these values."""
    low, high, kind = min(values), max(values), value_kind(metric, values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    if kind == "log":
        return LogNorm(low, high)
    return FuncNorm((_logit, _share), low, high) if kind == "logit" else Normalize(low, high)


def add_colour_bar(axes: Axes, norm: Normalize, metric: str, upwards: bool) -> None:
    """Add a colour bar for the metric beside the axes."""
    figure = axes.get_figure()
    assert figure is not None and norm.vmin is not None and norm.vmax is not None
    bar = figure.colorbar(ScalarMappable(norm, colour_map(upwards)), ax=axes, pad=0.02)
    axis = bar.ax.yaxis
    if isinstance(norm, FuncNorm):
        bar.set_ticks([tick for tick in LOGIT_TICKS if norm.vmin <= tick <= norm.vmax])
    elif isinstance(norm, LogNorm):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    else:
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(plain_numbers())
    if is_share(metric):
        axis.set_major_formatter(PERCENT)
    bar.ax.minorticks_off()
    bar.set_label(label_with_direction(metric, upwards))
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # in an SVG: an image instead of 256 rectangles


def label_with_direction(metric: str, upwards: bool) -> str:
    """Axis label: the metric and which direction is better."""
    return f"{metric} ({'higher' if upwards else 'lower'} is better)"


def plain_numbers() -> ScalarFormatter:
    """Tick labels without exponents and without a common offset."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


def _logit(share: Any) -> Any:
    inner = np.clip(share, CLOSEST_TO_CERTAIN, 1 - CLOSEST_TO_CERTAIN)
    return np.log(inner / (1 - inner))


def _share(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logit)))


def _sort_key(value: Any) -> tuple[Any, ...]:
    """Sorts numbers by size, lists of numbers by length and then by size, and texts by their letters."""
    if is_number(value):
        return (0, value)
    if isinstance(value, str) and value.startswith("["):  # a list, which Optuna stores as its JSON
        listed = json.loads(value)
        if all(map(is_number, listed)):
            return (2, len(listed), tuple(listed))
    return (1, str(value))
