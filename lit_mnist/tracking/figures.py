"""Figures of a run: pure functions from numpy arrays to matplotlib figures, for MLflow and for reports.

They use matplotlib's object interface: no pyplot, hence no global figures to close and no backend to choose.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from math import ceil
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

Array = NDArray[Any]
Series = Sequence[tuple[int, float]]

DPI = 120
INK, QUIET = "#222222", "#767676"
# Okabe and Ito's colours, which the colour-blind can tell apart.
STAGE_COLOURS = {"train": "#0072B2", "val": "#D55E00", "test": "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#E69F00", "#000000")
# A pixel that is NaN is shown, not hidden among the black ones.
GREY = matplotlib.colormaps["gray"].with_extremes(bad="#D55E00")
MISTAKE_COLOURS = matplotlib.colormaps["Oranges"].with_extremes(bad="#E4E4E4")
FEW_POINTS = 40
LABEL_GAP = 0.055
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")
NUMBERED_CLASSES = 20
NAMED_CLASSES = 25
MISTAKE_COLUMNS = 5
MOST_MISTAKES = 25


class Mistake(NamedTuple):
    """An image (H, W), uint8 or float in 0..1, its label, the wrong answer and that answer's probability."""

    image: Array
    true: int
    predicted: int
    probability: float


def loss_curves(history: Mapping[str, Series], title: str) -> Figure:
    """Draw every metric over the optimizer step: losses in one panel, accuracies, if any, in a second.

    `history` maps a metric's name, such as "val/loss", to its (step, value) points. Values that are not
    finite leave a gap; the label at a line's end says its last value, finite or not. Colours follow the
    stage, so "train" and "val" look the same in both panels.
    """
    logged = [name for name, points in history.items() if points]
    panels = {"loss": [n for n in logged if "acc" not in n], "accuracy": [n for n in logged if "acc" in n]}
    shown = {kind: names for kind, names in panels.items() if names} or {"loss": []}
    figure = _figure(7.5 * len(shown), 4.5, title)
    for axes, (kind, names) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.set(xlabel="optimizer step", ylabel=kind)
        _draw_metrics(axes, {name: history[name] for name in names}, kind)
    return figure


def confusion_matrix(counts: Array, class_names: Sequence[str], mistakes: Sequence[Mistake], title: str) -> Figure:
    """Draw counts (C, C), int, indexed [true, predicted], beside a grid of the first 25 mistakes.

    Colour is the share of the true class that went wrong; the diagonal stays grey, or its large numbers would
    drown the mistakes. Cells that count nothing stay empty, and beyond 20 classes no cell has a number.
    """
    figure = _figure(15, 7.6, title)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.1, 1))[0]
    _draw_matrix(left, np.asarray(counts), class_names)
    _draw_mistakes(right, mistakes[:MOST_MISTAKES], class_names)
    return figure


def worst_mistakes(
    images: Array, labels: Array, probabilities: Array, limit: int = MOST_MISTAKES
) -> list[Mistake]:
    """Return the wrong answers of highest probability, the worst first; equals keep the images' order.

    `images` are (N, H, W) or (N, C, H, W), `labels` (N,), `probabilities` (N, C).
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    sureness = probabilities[wrong, predicted[wrong]]
    worst = wrong[np.argsort(-sureness, kind="stable")][:limit]
    return [
        Mistake(image, int(labels[i]), int(predicted[i]), float(probabilities[i, predicted[i]]))
        for i, image in zip(worst, drawable(images[worst]), strict=True)
    ]


def image_rows(rows: Mapping[str, Array], title: str) -> Figure:
    """Draw one labelled row of images per key, on a grey scale from 0 to 1 (or 0 to 255 for uint8).

    Each row is (N, H, W) or (N, C, H, W); rows may differ in N and in the images' size.
    """
    strips = {label: _strip(drawable(images)) for label, images in rows.items()}
    widest = max(strip.shape[1] / strip.shape[0] for strip in strips.values())
    figure = _figure(max(4.0, 0.75 * widest + 1.6), 0.8 * len(rows) + 0.6, title)
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (label, strip) in zip(panels, strips.items(), strict=True):
        _show(axes, strip)
        axes.set_anchor("W")
        axes.set_ylabel(label, rotation=0, ha="right", va="center", color=INK, parse_math=False)
    return figure


def drawable(images: Array) -> Array:
    """Return images as floats in 0..1, shaped (N, H, W), or (N, H, W, 3) when they have three channels.

    Takes (N, H, W) or (N, C, H, W), uint8 or float. Other numbers of channels are averaged.
    """
    scaled = _unit(images)
    if scaled.ndim == 3:
        return scaled
    return scaled.transpose(0, 2, 3, 1) if scaled.shape[1] == 3 else scaled.mean(axis=1)


def _unit(image: Array) -> Array:
    return image / 255 if image.dtype == np.uint8 else np.clip(image.astype(np.float32), 0, 1)


def _figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure, its sides in inches, with the title at the top left."""
    engine = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.07)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=engine)
    lines = textwrap.fill(title, width=int(8 * width))
    # Run names may hold dollar signs, which matplotlib would read as formulas.
    style: dict[str, Any] = {"fontweight": "bold", "color": INK, "parse_math": False}
    figure.suptitle(lines, x=0.01, ha="left", fontsize=13, **style)
    return figure


def _bare(axes: Axes, spines: Iterable[str]) -> None:
    axes.spines[list(spines)].set_visible(False)
    axes.tick_params(length=0, colors=INK)


def _draw_metrics(axes: Axes, metrics: Mapping[str, Series], kind: str) -> None:
    _bare(axes, ("top", "right"))
    axes.grid(color="#E6E6E6", linewidth=0.8)
    others, dashes = cycle(OTHER_COLOURS), _dashes(metrics)
    # The densest lines lie lowest, so that a few validation points stay in sight on a noisy training loss.
    for name, points in sorted(metrics.items(), key=lambda item: -len(item[1])):
        steps, values = np.array(points, dtype=float).T
        few = len(points) <= FEW_POINTS
        axes.plot(
            steps,
            np.where(np.isfinite(values), values, np.nan),
            color=STAGE_COLOURS.get(name.split("/")[0]) or next(others),
            linestyle=dashes[name],
            linewidth=1.8 if few else 1.0,
            marker="o" if few else None,
            markersize=4.5,
            label=name,
        )
    _scale(axes, kind)
    _label_ends(axes, metrics, kind)


def _dashes(names: Iterable[str]) -> dict[str, str]:
    """Solid for a stage's first metric in the panel, broken lines for its others, which share its colour."""
    seen: dict[str, int] = {}
    styles = {}
    for name in names:
        stage = name.split("/")[0]
        styles[name] = ("-", "--", ":", "-.")[seen.get(stage, 0) % 4]
        seen[stage] = seen.get(stage, 0) + 1
    return styles


def _scale(axes: Axes, kind: str) -> None:
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    values = np.concatenate([*drawn, np.empty(0)])
    values = values[np.isfinite(values)]
    if not values.size:
        message = "no finite value" if drawn else "nothing was logged"
        axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", color=QUIET)
    elif kind == "accuracy":
        axes.yaxis.set_major_formatter(PERCENT)
    elif values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        few_decades = values.max() < 1000 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _label_ends(axes: Axes, metrics: Mapping[str, Series], kind: str) -> None:
    """Write each line's name and last value beside its end, moved apart where ends are close."""
    # The heights below hold only while the limits stay as they are now.
    axes.set_ylim(axes.get_ylim())
    heights = {str(line.get_label()): _height(axes, line) for line in axes.lines}
    height = -1.0
    for line in sorted(axes.lines, key=lambda line: heights[str(line.get_label())]):
        name = str(line.get_label())
        height = max(heights[name], height + LABEL_GAP)
        last = metrics[name][-1][1]
        text = f"{name}  {100 * last:.2f} %" if kind == "accuracy" else f"{name}  {last:.3g}"
        style: dict[str, Any] = {"color": line.get_color(), "va": "center", "parse_math": False}
        axes.text(1.02, height, text, transform=axes.transAxes, **style)


def _height(axes: Axes, line: Line2D) -> float:
    """Return the height of the line's last finite point, 0 at the panel's foot and 1 at its top."""
    points = np.asarray(line.get_xydata(), dtype=float)
    finite = points[np.isfinite(points[:, 1])]
    to_axes = axes.transData + axes.transAxes.inverted()
    return float(to_axes.transform(finite[-1])[1]) if len(finite) else 0.0


def _draw_matrix(panel: SubFigure, counts: Array, class_names: Sequence[str]) -> None:
    classes, total = len(counts), max(int(counts.sum()), 1)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = np.ma.masked_array(rates, mask=np.eye(classes, dtype=bool))
    norm = PowerNorm(0.5, vmin=0, vmax=max(float(wrong.filled(0).max()), 0.01))
    axes = panel.subplots()
    image = axes.imshow(wrong, cmap=MISTAKE_COLOURS, norm=norm)
    _bare(axes, axes.spines)
    right = int(np.trace(counts))
    axes.set_title(f"{right} of {total} right ({100 * right / total:.2f} %)", fontsize=10, color=QUIET, loc="left")
    axes.set(xlabel="predicted", ylabel="true")
    _name_classes(axes, class_names)
    if classes <= NUMBERED_CLASSES:
        _number_cells(axes, counts, norm(wrong.filled(0)))
    bar = panel.colorbar(image, ax=axes, shrink=0.6, aspect=28, pad=0.02, format=PERCENT)
    bar.set_label("mistaken, of the true class", color=QUIET)
    bar.outline.set_visible(False)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    shown = range(0, len(class_names), ceil(len(class_names) / NAMED_CLASSES))
    names = [class_names[i] for i in shown]
    long = max(map(len, names)) > 3
    axes.set_xticks(shown, names, rotation=45 if long else 0, ha="right" if long else "center", parse_math=False)
    axes.set_yticks(shown, names, parse_math=False)


def _number_cells(axes: Axes, counts: Array, darkness: Array) -> None:
    cell_points = 400 / len(counts)
    size = min(11.0, cell_points / (0.75 * len(str(counts.max()))))
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            colour = "white" if darkness[true, predicted] > 0.6 and true != predicted else INK
            axes.text(predicted, true, str(count), ha="center", va="center", fontsize=size, color=colour)


def _draw_mistakes(panel: SubFigure, mistakes: Sequence[Mistake], class_names: Sequence[str]) -> None:
    heading = "most confident mistakes" if mistakes else "no mistakes to show"
    panel.suptitle(heading, fontsize=10, color=QUIET, x=0.02, ha="left")
    grid = panel.add_gridspec(MOST_MISTAKES // MISTAKE_COLUMNS, MISTAKE_COLUMNS)
    for i, mistake in enumerate(mistakes):
        axes = panel.add_subplot(grid[divmod(i, MISTAKE_COLUMNS)])
        _show(axes, _unit(mistake.image))
        true, predicted = (_short(class_names[i]) for i in (mistake.true, mistake.predicted))
        # One line holds digits; names of clothes need two.
        separator = " " if len(true + predicted) < 6 else "\n"
        axes.set_title(
            f"true {true}{separator}→ {predicted} ({100 * mistake.probability:.0f} %)",
            fontsize=8,
            color=INK,
            pad=3,
            parse_math=False,
        )


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def _strip(images: Array) -> Array:
    """Join images (N, H, W) or (N, H, W, 3) side by side, a thin white line between each two."""
    gap = np.ones((images.shape[1], max(1, images.shape[2] // 28), *images.shape[3:]))
    parts = [part for image in images for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _show(axes: Axes, image: Array) -> None:
    axes.imshow(image, cmap=GREY, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    _bare(axes, axes.spines)
