"""Parts that the figures of a study share: axes of parameters and objectives, the palette, and marks of trials.

So a parameter has the same axis, and a trial the same mark, in all figures. Each mark has an address such as
`#trial-7`, by which the page (`html.py`) finds it in the figure's SVG.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, FuncNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
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
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.sweeps.search.parameters import is_number
from lit_mnist.sweeps.study.summary import StudySummary, is_allowed, show
from lit_mnist.tracking.queries.metrics import is_share
from lit_mnist.tracking.queries.statistics import show_mean

Which = Literal["x", "y"]
Kind = Literal["linear", "log", "logit", "places"]
INK, GREY, BLUE, ORANGE, PINK = "#222222", "#767676", "#0072B2", "#D55E00", "#CC79A7"
"""From the palette of Okabe and Ito, which can be distinguished with any kind of colour blindness."""
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.6g} %")
# Viridis is perceptually uniform, also with colour blindness. Its brightest quarter is left out: the last colour
# has a contrast of 2.1:1 on white, compared with 1.3:1 at the end of the whole palette.
_DARK_IS_LOW = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.75, 256)))
_DARK_IS_HIGH = _DARK_IS_LOW.reversed()
# Round shares for an axis from 10 to 99.9 %.
LOGIT_TICKS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
MAX_TICKS = 6
CLOSEST_TO_CERTAIN = 1e-4
"""Minimum distance from 0 and 1 at which shares are drawn, since a logit scale has no ends."""
LOG_RATIO = 8
"""Minimum ratio of the largest to the smallest numeric choice for a logarithmic axis."""


def colour_map(upwards: bool) -> Colormap:
    """The palette of all figures of a study, in which better values are darker."""
    return _DARK_IS_HIGH if upwards else _DARK_IS_LOW


@dataclass(frozen=True)
class Scale:
    """The axis of one parameter.

    Numbers are on a linear or logarithmic axis, also if they are given as `choices`. All other values are evenly
    spaced in a sensible order: lists by length and then by size.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...]
    """The values that were tried, in the order of the axis."""
    low: float
    high: float
    """Ends of the search space, extended to include all tried values."""

    @property
    def is_numeric(self) -> bool:
        """True if distances between the values are meaningful."""
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
        """Labels and their heights: the values that were tried, or about `count` round numbers."""
        if not self.is_numeric or len(self.values) <= count:
            return {show(value): self.height(self.place(value)) for value in self.values}
        few_decades = self.kind == "log" and self.high < 300 * self.low
        log = LogLocator(subs=(1, 2, 5) if few_decades else (1,))
        is_whole = all(float(value).is_integer() for value in self.values)
        locator = log if self.kind == "log" else MaxNLocator(count - 1, integer=is_whole)
        # Locators also return ticks beyond the ends. A tick at an end is kept despite rounding errors.
        places = [tick for tick in map(float, locator.tick_values(self.low, self.high))
                  if -1e-9 <= self.height(tick) <= 1 + 1e-9]  # fmt: skip
        if len(places) < 2:  # an interval without round numbers
            places = [self.low, self.high]
        return {f"{tick:.6g}": self.height(tick) for tick in places}

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
            labels = [show(value) for value in self.values]
            axis.set_ticks(range(len(labels)), labels, parse_math=False)
            if which == "x" and max(map(len, labels)) > 6 and len(labels) > 3:
                axis.set_tick_params(rotation=25)
        if self.is_numeric and len(self.values) <= MAX_TICKS and all(len(f"{v:g}") <= 5 for v in self.values):
            axis.set_ticks(self.values, [show(value) for value in self.values])  # round numbers: a grid
            axis.set_minor_locator(NullLocator())
        axes.set(**{f"{which}lim": limits})
        (axes.set_xlabel if which == "x" else axes.set_ylabel)(self.name, parse_math=False)


def scale_of(name: str, trials: Sequence[FrozenTrial]) -> Scale:
    """The scale of a parameter that at least one of the trials has."""
    # From the distribution, since the values do not show whether the axis is logarithmic.
    having = [trial for trial in trials if name in trial.params]
    distribution: Any = having[0].distributions[name]
    values = tuple(sorted({trial.params[name] for trial in having}, key=_sort_key))
    if not isinstance(distribution, CategoricalDistribution):
        kind: Kind = "log" if getattr(distribution, "log", False) else "linear"
        low, high = min(distribution.low, *values), max(distribution.high, *values)
    elif all(map(is_number, distribution.choices)):
        numbers: list[Any] = list(distribution.choices)
        low, high = min(numbers), max(numbers)
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


def show_metric(metric: str, value: float, interval: float | None = None) -> str:
    """An objective's value, in percent where it is a share, with half its confidence interval."""
    factor, unit = (100, " %") if is_share(metric) else (1, "")
    if interval is None or not 1e-6 < factor * interval < 1e4:
        return f"{show_mean(factor * value, None)}{unit}"
    # Two significant digits of the interval, and the same number of decimals for the value.
    decimals = max(0, 1 - math.floor(math.log10(factor * interval)))
    return f"{factor * value:.{decimals}f} ± {factor * interval:.{decimals}f}{unit}"


def value_kind(metric: str, values: Sequence[float]) -> Kind:
    """The kind of axis for an objective's values.

    It is logarithmic if they span decades, and logit for shares from far below to near 1: on a linear axis that
    starts with trials pruned at 10 %, values of 97 % and 98 % could not be distinguished.
    """
    low, high = min(values), max(values)
    if is_share(metric):
        return "logit" if 0 <= low < 0.7 < 0.9 < high <= 1 else "linear"
    return "log" if low > 0 and high > 20 * low else "linear"


def apply_value_axis(axes: Axes, which: Which, metric: str, values: Sequence[float]) -> None:
    """Format an axis for an objective's `values`, of which there must be at least one."""
    axis, kind = axes.xaxis if which == "x" else axes.yaxis, value_kind(metric, values)
    if kind == "log":
        use_log_axis(axes, which, values)
    elif kind == "logit":
        axes.set(**{f"{which}scale": "logit"})
        ends = _logit(np.array([min(values), max(values)]))
        margin = 0.08 * (ends[1] - ends[0])
        axes.set(**{f"{which}lim": tuple(_share(ends + np.array([-margin, margin])))})
        axis.set_major_locator(FixedLocator(LOGIT_TICKS))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_formatter(plain_numbers())
        axes.margins(x=0.08) if which == "x" else axes.margins(y=0.08)
    if is_share(metric):
        axis.set_major_formatter(PERCENT)


def use_log_axis(axes: Axes, which: Which, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with plain numbers instead of powers of ten as tick labels."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    # With fewer labels on a horizontal axis, since numbers such as 0.0001 and 0.0002 overlap in a narrow panel.
    few_decades = max(values) < (30 if which == "x" else 300) * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def colour_scale(metric: str, values: Sequence[float]) -> Normalize:
    """Map the range of `values` to colours, with the same kind of scale as an axis of these values."""
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
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # in an SVG: an image instead of 256 rectangles


def label_with_direction(metric: str, upwards: bool) -> str:
    """Axis label: the metric and which direction is better."""
    return f"{metric} ({'higher' if upwards else 'lower'} is better)"


def plain_numbers() -> ScalarFormatter:
    """Tick labels without exponents and without a common offset."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


def new_figure(width: float, height: float, title: str) -> Figure:
    """Create an empty figure of `width` × `height` inches.

    It is a plain `Figure` without pyplot, so it need not be closed and uses no backend.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    # parse_math=False, since dollar signs in a study's name are not formulas.
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    return figure


def address(trial: FrozenTrial) -> str:
    """The address of a trial in the links of an SVG."""
    return f"#trial-{trial.number}"


def mark_trials(
    axes: Axes,
    summary: StudySummary,
    places: Sequence[tuple[FrozenTrial, float, float]],
    norm: Normalize | None = None,
    *,
    index: int | None = 0,
    ring: bool = True,
    size: float = 30,
) -> None:
    """Mark trials: filled if complete, hollow if pruned or not allowed, with a ring around the best.

    Args:
        axes: The axes to draw on.
        summary: The study of the trials.
        places: Trials that are complete or pruned, each with its coordinates.
        norm: Colours the marks by the first objective; None for one colour.
        index: The objective on the vertical axis, whose intervals over the seeds are drawn; None for none.
        ring: Whether to ring the best trial, or those on the Pareto front.
        size: Area of a mark in square points.

    """
    cmap = colour_map(summary.upwards[0])
    # Label, marker, hollow or filled, and which trials; each kind is one entry of the legend.
    kinds: tuple[tuple[str, str, bool, Callable[[FrozenTrial], bool]], ...] = (
        ("complete", "o", False, lambda t: t.state == TrialState.COMPLETE and is_allowed(t)),
        ("breaks a constraint", "s", True, lambda t: t.state == TrialState.COMPLETE and not is_allowed(t)),
        ("pruned, at its last value", "o", True, lambda t: t.state == TrialState.PRUNED),
    )
    for label, marker, is_hollow, belongs in kinds:
        chosen = [place for place in places if belongs(place[0])]
        if not chosen:
            continue
        trials, x, y = zip(*chosen, strict=True)
        colours: list[Any] = [GREY if is_hollow else BLUE] * len(trials)
        if norm is not None:
            colours = [cmap(norm(summary.value(trial) or 0.0)) for trial in trials]
        white = ["white"] * len(trials)
        # A list of colours, even if all are equal: otherwise matplotlib draws the collection as one path, and the
        # SVG contains only the first address.
        drawn = axes.scatter(
            x, y, s=size, marker=marker, zorder=3 if is_hollow else 4, label=label,
            facecolors=white if is_hollow else colours, edgecolors=colours if is_hollow else white,
            linewidths=1.2 if is_hollow else 0.5, clip_on=False,
        )  # fmt: skip
        drawn.set_urls([address(trial) for trial in trials])
        if index is not None:
            for trial, at, value in chosen:
                if (interval := summary.interval(trial, index)) is not None:
                    axes.errorbar(at, value, interval, color=GREY, linewidth=1, capsize=2, zorder=2)
    best = {trial.number for trial in summary.best()} if ring else set()
    # Last, around the marks of the trials.
    ringed = [(x, y) for trial, x, y in places if trial.number in best]
    if ringed:
        at_x, at_y = zip(*ringed, strict=True)
        label = "best" if len(summary.objectives) == 1 else "Pareto front"
        axes.scatter(at_x, at_y, s=5 * size, facecolors="none", edgecolors=ORANGE, linewidths=1.8, zorder=5,
                     label=label)  # fmt: skip


def add_legend(axes: Axes) -> None:
    """Add a legend of these axes below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    if (figure := axes.get_figure()) is not None and handles:
        figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower left", ncols=len(labels))


def _logit(share: Any) -> Any:
    # Clipped at the ends, where the logit is infinite.
    inner = np.clip(share, CLOSEST_TO_CERTAIN, 1 - CLOSEST_TO_CERTAIN)
    return np.log(inner / (1 - inner))


def _share(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logit)))


def _sort_key(value: Any) -> tuple[Any, ...]:
    """Sorts numbers by size, lists of numbers by length and then by size, and texts alphabetically."""
    if is_number(value):
        return (0, value)
    if isinstance(value, str) and value.startswith("["):  # a list, which Optuna stores as its JSON
        listed = json.loads(value)
        if all(map(is_number, listed)):
            return (2, len(listed), tuple(listed))
    return (1, str(value))
