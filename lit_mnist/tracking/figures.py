"""Figures of a run: pure functions from numpy arrays to matplotlib figures, for MLflow and for reports.

They use matplotlib's object interface instead of pyplot, whose figures stay in memory until they are closed, and
whose backend may need a display.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lit_mnist.tracking.queries.metrics import is_share

Array = NDArray[Any]
Series = Sequence[tuple[int, float]]
"""Points of a metric: optimizer step and value."""

DPI = 120
INK, QUIET = "#222222", "#767676"
# The palette of Okabe and Ito, which can be distinguished with any kind of colour blindness.
STAGE_COLOURS = {"train": "#0072B2", "val": "#D55E00", "test": "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
NAN_COLOUR = "#D55E00"
"""Colour of NaN pixels, which would not be noticed in black or white."""
GREY = matplotlib.colormaps["gray"].with_extremes(bad=NAN_COLOUR)
MISTAKE_COLOURS = matplotlib.colormaps["Oranges"].with_extremes(bad="#E4E4E4")
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")
FEW_POINTS = 40
"""Maximum number of points for which a line has markers."""
LABEL_GAP = 0.055
"""Minimum distance between the labels of two lines, as a share of the panel's height."""
NUMBERED_CLASSES = 20
"""Maximum number of classes for which the confusion matrix has numbers in its cells."""
NAMED_CLASSES = 25
"""Maximum number of class names along an axis."""
LEVEL_CHARACTERS = 50
"""Number of characters of class names that fit below the confusion matrix without rotation."""
MISTAKE_COLUMNS, MOST_MISTAKES = 5, 25


class Mistake(NamedTuple):
    """A misclassified image."""

    image: Array
    """(H, W), or (H, W, 3) for a colour image; uint8, or float from 0 to 1."""
    true: int
    predicted: int
    probability: float
    """The model's probability of the predicted class."""


def loss_curves(history: Mapping[str, Series], title: str) -> Figure:
    """Plot metrics over the optimizer step: losses in one panel and accuracies, if there are any, in a second.

    Each line is labelled at its end with the metric's last value, finite or not. Values that are not finite leave
    a gap in the line. The colour shows the stage, so "train" and "val" look the same in both panels.

    Args:
        history: Metric name, such as "val/loss", to its points.
        title: The figure's title.

    """
    # Metrics without points, such as val/loss without validation, have no line.
    logged = [name for name, points in history.items() if points]
    panels = {
        "loss": [name for name in logged if not is_share(name)],
        "accuracy": [name for name in logged if is_share(name)],
    }
    # If nothing was logged, there is one empty panel, since no panel at all would look like an error.
    shown = {kind: names for kind, names in panels.items() if names} or {"loss": []}
    figure = _figure(7.5 * len(shown), 4.5, title)
    for axes, (kind, names) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.set(xlabel="optimizer step", ylabel=kind)
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, colors=INK)
        # In this order, since the positions of the labels depend on the final scale.
        _plot_lines(axes, {name: history[name] for name in names})
        _scale_values(axes, kind)
        _label_ends(axes, {name: history[name][-1][1] for name in names}, kind)
    return figure


def confusion_matrix(counts: Array, class_names: Sequence[str], mistakes: Sequence[Mistake], title: str) -> Figure:
    """Draw a confusion matrix, and next to it the first 25 mistakes.

    The colour of a cell is its share of the true class. The diagonal is not coloured, since with its large numbers
    on the same scale the mistakes could not be distinguished. Zeros are not written, and with more than 20 classes
    there are no numbers.

    Args:
        counts: (C, C), int, indexed [true, predicted].
        class_names: C names.
        mistakes: The images to show, see `worst_mistakes`; without any, the figure is the matrix alone.
        title: The figure's title.

    """
    if not mistakes:
        figure = _figure(8, 7.6, title)
        _draw_matrix(figure, np.asarray(counts), class_names)
        return figure
    figure = _figure(15, 7.6, title)
    # The matrix on the left, 25 images on the right.
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.1, 1))[0]
    _draw_matrix(left, np.asarray(counts), class_names)
    right.suptitle("most confident mistakes", fontsize=10, color=QUIET, x=0.02, ha="left")
    grid = right.add_gridspec(MOST_MISTAKES // MISTAKE_COLUMNS, MISTAKE_COLUMNS)
    for i, mistake in enumerate(mistakes[:MOST_MISTAKES]):
        axes = right.add_subplot(grid[divmod(i, MISTAKE_COLUMNS)])
        _show(axes, _scaled(mistake.image))
        true, predicted = (_shortened(class_names[label], 14) for label in (mistake.true, mistake.predicted))
        # Digits fit on one line; the names of clothes need two.
        separator = " " if len(true + predicted) < 6 else "\n"
        caption = f"true {true}{separator}→ {predicted} ({100 * mistake.probability:.0f} %)"
        axes.set_title(caption, fontsize=8, color=INK, pad=3, parse_math=False)
    return figure


def worst_mistakes(
    images: Array, labels: Array, probabilities: Array, limit: int = MOST_MISTAKES
) -> list[Mistake]:
    """Return the misclassified images, those with the most confident predictions first.

    Args:
        images: (N, H, W) or (N, C, H, W), uint8 or float from 0 to 1.
        labels: (N,), the true classes.
        probabilities: (N, number of classes).
        limit: How many at most.

    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    # Stable, so that equal confidences come in the same order on every machine.
    worst = wrong[np.argsort(-confidence, kind="stable")][:limit]
    return [
        Mistake(image, int(labels[i]), int(predicted[i]), float(probabilities[i, predicted[i]]))
        for i, image in zip(worst, drawable(images[worst]), strict=True)
    ]


def image_rows(rows: Mapping[str, Array], title: str) -> Figure:
    """Draw rows of images, each with its label on the left, such as originals above their reconstructions.

    Args:
        rows: Label to images, (N, H, W) or (N, C, H, W), uint8 or float from 0 to 1. Rows may differ in the number
            of images, their size and their channels.
        title: The figure's title.

    """
    strips = {}
    for label, images in rows.items():
        # (N, H, W) or (N, H, W, 3)
        pixels = drawable(images)
        # One strip of all images with thin white lines in between, which needs one artist instead of N.
        gap = np.ones((pixels.shape[1], max(1, pixels.shape[2] // 28), *pixels.shape[3:]))
        parts = [part for image in pixels for part in (image, gap)]
        strips[label] = np.concatenate(parts[:-1], axis=1)
    widest = max(strip.shape[1] / strip.shape[0] for strip in strips.values())
    figure = _figure(max(4.0, 0.75 * widest + 1.6), 0.8 * len(rows) + 0.6, title)
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (label, strip) in zip(panels, strips.items(), strict=True):
        _show(axes, strip)
        axes.set_anchor("W")
        axes.set_ylabel(label, rotation=0, ha="right", va="center", color=INK, parse_math=False)
    return figure


def drawable(images: Array) -> Array:
    """Convert images to matplotlib's format: floats from 0 to 1, (N, H, W), or (N, H, W, 3) for RGB.

    Args:
        images: (N, H, W) or (N, C, H, W), uint8 or float. Three channels are RGB; the mean is taken over any other
            number of channels.

    """
    scaled = _scaled(images)
    if scaled.ndim == 3:
        return scaled
    return scaled.transpose(0, 2, 3, 1) if scaled.shape[1] == 3 else scaled.mean(axis=1)


def _scaled(image: Array) -> Array:
    return image / 255 if image.dtype == np.uint8 else np.clip(image.astype(np.float32), 0, 1)


def _figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of `width` by `height` inches with the title at the top left."""
    engine = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.07)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=engine)
    lines = textwrap.fill(title, width=int(8 * width))  # matplotlib does not break lines
    # Run names may contain dollar signs, which matplotlib would interpret as formulas.
    style: dict[str, Any] = {"fontweight": "bold", "color": INK, "parse_math": False}
    figure.suptitle(lines, x=0.01, ha="left", fontsize=13, **style)
    return figure


def _plot_lines(axes: Axes, metrics: Mapping[str, Series]) -> None:
    """Plot the metrics; the first one of a stage is a solid line, and others are dashed in the same colour."""
    others, of_stage = cycle(OTHER_COLOURS), Counter[str]()
    styles = {}
    for name in metrics:
        stage = name.split("/")[0]
        styles[name] = LINE_STYLES[of_stage[stage] % len(LINE_STYLES)]
        of_stage[stage] += 1
    # The line with the most points is drawn first, so that a noisy training loss does not hide validation points.
    for name, points in sorted(metrics.items(), key=lambda item: -len(item[1])):
        # Two arrays (P,). NaN leaves a gap in the line, while infinity would stretch the axis.
        steps, values = np.array(points, dtype=float).T
        few = len(points) <= FEW_POINTS
        axes.plot(
            steps,
            np.where(np.isfinite(values), values, np.nan),
            color=STAGE_COLOURS.get(name.split("/")[0]) or next(others),
            linestyle=styles[name],
            linewidth=1.8 if few else 1.0,
            marker="o" if few else None,
            markersize=4.5,
            label=name,
        )


def _scale_values(axes: Axes, kind: str) -> None:
    """Scale the vertical axis: accuracies in percent, losses that span more than a decade logarithmically."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    values = np.concatenate([*drawn, np.empty(0)])
    values = values[np.isfinite(values)]
    if not values.size:
        message = "no finite value" if drawn else "nothing was logged"
        axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", color=QUIET)
        axes.set(xticks=[], yticks=[])
    elif kind == "accuracy":
        axes.yaxis.set_major_formatter(PERCENT)
    elif values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        few_decades = values.max() < 1000 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _label_ends(axes: Axes, last_values: Mapping[str, float], kind: str) -> None:
    """Write name and last value of each line next to its end; labels that are too close are moved apart."""
    axes.set_ylim(axes.get_ylim())  # fixes the limits, on which the positions below depend
    to_axes = axes.transData + axes.transAxes.inverted()
    ends: list[tuple[float, Line2D]] = []
    for line in axes.lines:
        points = np.asarray(line.get_xydata(), dtype=float)
        finite = points[np.isfinite(points[:, 1])]
        # From 0 at the bottom of the panel to 1 at its top; at the bottom if there is no finite point.
        ends.append((float(to_axes.transform(finite[-1])[1]) if len(finite) else 0.0, line))
    ends.sort(key=lambda end: end[0])
    heights = [height for height, _ in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + LABEL_GAP)
    # Move labels that are above the panel down again, and the labels below them too.
    highest = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], highest)
        highest = heights[i] - LABEL_GAP
    # Lines of the same colour are distinguished by a sample of the line before the label.
    sampled = any(line.get_linestyle() != "-" for line in axes.lines)
    for height, (_, line) in zip(heights, ends, strict=True):
        name, colour = str(line.get_label()), line.get_color()
        value = f"{100 * last_values[name]:.2f} %" if kind == "accuracy" else f"{last_values[name]:.3g}"
        if sampled:
            style: dict[str, Any] = {"color": colour, "linestyle": line.get_linestyle(), "linewidth": 1.8}
            axes.add_artist(
                Line2D((1.02, 1.08), (height, height), transform=axes.transAxes, clip_on=False, **style)
            )
        style = {"color": colour, "va": "center", "parse_math": False}
        axes.text(1.09 if sampled else 1.02, height, f"{name}  {value}", transform=axes.transAxes, **style)


def _draw_matrix(panel: Figure | SubFigure, counts: Array, class_names: Sequence[str]) -> None:
    # Rows are normalised, since classes may differ in size.
    classes, right, total = len(counts), int(np.trace(counts)), int(counts.sum())
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = np.ma.masked_array(shares, mask=np.eye(classes, dtype=bool))
    # The square root spreads the small shares, which are the most frequent.
    norm = PowerNorm(0.5, vmin=0, vmax=max(float(wrong.filled(0).max()), 0.01))
    axes = panel.subplots()
    image = axes.imshow(wrong, cmap=MISTAKE_COLOURS, norm=norm)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=INK)
    heading = f"{right:,} of {total:,} right ({100 * right / max(total, 1):.2f} %)"
    axes.set_title(heading, fontsize=10, color=QUIET, loc="left")
    axes.set(xlabel="predicted", ylabel="true")

    # Every class up to 25, then every second, third, and so on.
    ticks = range(0, classes, ceil(classes / NAMED_CLASSES))
    names = [_shortened(class_names[i], 20) for i in ticks]
    axes.set_yticks(ticks, names, parse_math=False)
    style: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    level = max(map(len, names)) * len(names) <= LEVEL_CHARACTERS
    axes.set_xticks(ticks, names, parse_math=False, **({} if level else style))

    if classes <= NUMBERED_CLASSES:
        darkness = norm(wrong.filled(0))
        size = min(11.0, 400 / classes / (0.75 * len(str(counts.max()))))  # the matrix is about 400 points wide
        for (true, predicted), count in np.ndenumerate(counts):
            if count:
                # White text on dark cells, but not on the diagonal, which has no colour.
                colour = "white" if darkness[true, predicted] > 0.6 and true != predicted else INK
                axes.text(predicted, true, str(count), ha="center", va="center", fontsize=size, color=colour)
    bar = panel.colorbar(image, ax=axes, shrink=0.6, aspect=28, pad=0.02, format=PERCENT)
    bar.set_label("mistaken, share of the true class", color=QUIET)
    bar.outline.set_visible(False)


def _shortened(name: str, length: int) -> str:
    """Return `name`, shortened in the middle to `length` characters, since numbered names differ at their ends."""
    half = length // 2
    return name if len(name) <= length else f"{name[: length - half]}…{name[1 - half :]}"


def _show(axes: Axes, image: Array) -> None:
    """Draw an image (H, W) or (H, W, 3) with values from 0 to 1."""
    if image.ndim == 3:  # a colour map, which has a colour for NaN, applies to grey images only
        image = np.where(np.isnan(image).any(axis=2, keepdims=True), to_rgb(NAN_COLOUR), image)
    axes.imshow(image, cmap=GREY, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
