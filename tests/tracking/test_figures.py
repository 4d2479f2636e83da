"""The figures of a run: loss curves, confusion matrix with mistakes, and rows of images."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from lit_mnist.data.mini import load_mini
from lit_mnist.tracking.figures import (
    Mistake,
    confusion_matrix,
    drawable,
    image_rows,
    loss_curves,
    worst_mistakes,
)

IMAGES, LABELS = load_mini()[2:]
DIGITS = [str(digit) for digit in range(10)]
TRAIN = [(step, 2.0 * 0.99**step) for step in range(1, 400)]
VAL = [(100, 0.8), (200, 0.4), (399, 0.09)]


def texts(figure: Figure) -> list[str]:
    """Return every visible text of the figure; fails if the figure cannot be drawn."""
    figure.draw_without_rendering()
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")) if t.get_visible()]


def test_curves_are_labelled_with_their_last_value():
    figure = loss_curves({"train/loss": TRAIN, "val/loss": VAL}, "zhang/cnn $\\frac$")
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["val/loss"].get_xydata().tolist() == [list(point) for point in VAL]
    assert (lines["train/loss"].get_marker(), lines["val/loss"].get_marker()) == ("None", "o")
    assert lines["train/loss"].get_color() != lines["val/loss"].get_color()
    assert {"zhang/cnn $\\frac$", "optimizer step", "val/loss  0.09"} <= set(texts(figure))
    label = next(text for text in axes.texts if text.get_text().startswith("val"))
    height = axes.transAxes.transform(label.get_position())[1]
    assert height == pytest.approx(axes.transData.transform(VAL[-1])[1], abs=2)


@pytest.mark.parametrize(
    ("values", "scale"), [((2.0, 0.1), "log"), ((2.0, 0.5), "linear"), ((2.0, 0.0), "linear")]
)
def test_loss_is_logarithmic_only_beyond_a_decade(values, scale):
    assert loss_curves({"val/loss": list(enumerate(values))}, "").axes[0].get_yscale() == scale


def test_accuracy_has_its_own_panel():
    figure = loss_curves({"val/loss": VAL, "val/acc": [(100, 0.9), (399, 0.975)]}, "")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert "val/acc  97.50 %" in texts(figure)


@pytest.mark.parametrize(
    ("history", "text"),
    [
        ({}, "nothing was logged"),
        ({"val/loss": []}, "nothing was logged"),
        ({"val/loss": [(1, float("nan"))]}, "no finite value"),
        ({"val/loss": [(1, 0.5), (2, float("inf"))]}, "val/loss  inf"),
    ],
)
def test_missing_and_diverged_metrics_are_shown_as_text(history, text):
    assert text in texts(loss_curves(history, ""))


def test_labels_of_lines_that_end_at_the_same_value_do_not_overlap():
    figure = loss_curves({f"{stage}/loss": [(1, 0.5), (2, 0.25)] for stage in ("train", "val", "test")}, "")
    figure.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 3
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))


def test_labels_of_lines_that_end_at_the_top_stay_in_the_panel():
    figure = loss_curves({f"{name}/acc": [(1, 0.5), (2, 0.99)] for name in "abcdef"}, "")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert len(heights) == 6 and heights[-1] <= 1
    assert min(high - low for low, high in pairwise(heights)) > 0.05


def test_metrics_of_one_stage_differ_in_line_style_also_in_their_labels():
    figure = loss_curves({"val/loss": VAL, "val/mse": VAL, "train/loss": TRAIN}, "")
    (axes,) = figure.axes
    styles = {line.get_label(): line.get_linestyle() for line in axes.lines}
    assert styles["val/loss"] == styles["train/loss"] == "-" != styles["val/mse"]
    samples = [line.get_linestyle() for line in axes.lines if line.get_transform() == axes.transAxes]
    assert sorted(samples) == ["-", "-", "--"]


def test_steps_are_whole_numbers():
    figure = loss_curves({"val/loss": [(10, 0.5)]}, "")
    figure.draw_without_rendering()
    assert all(label.get_text().isdecimal() for label in figure.axes[0].get_xticklabels())


@pytest.mark.parametrize("names", [DIGITS, [f"Ankle boot {digit}" for digit in DIGITS], ["no", "yes"]])
def test_the_confusion_matrix_writes_each_count_into_its_cell(names):
    counts = np.diag(np.full(len(names), 980))
    counts[1, 0] = 37
    figure = confusion_matrix(counts, names, [], "errors")
    axes = figure.axes[0]
    cells = {t.get_position(): t.get_text() for t in axes.texts}
    assert cells.pop((0, 1)) == "37"
    assert set(cells.values()) == {"980"} and len(cells) == len(names)
    assert [t.get_text() for t in axes.get_yticklabels()] == names
    assert len(figure.axes) == 2  # the matrix and its colour bar


def test_the_confusion_matrix_colours_only_mistakes():
    image = confusion_matrix(np.array([[950, 50], [1, 99]]), ["a", "b"], [], "").axes[0].images[0]
    assert image.get_array().tolist() == [[None, 0.05], [0.01, None]]


def test_a_confusion_matrix_of_100_classes_omits_numbers_and_some_names():
    figure = confusion_matrix(np.eye(100, dtype=int), [f"class {i}" for i in range(100)], [], "")
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_xticks()) == 25


@pytest.mark.parametrize(
    ("names", "caption"),
    [(DIGITS, "true 4 → 9 (99 %)"), (["Ankle boot"] * 10, "true Ankle boot\n→ Ankle boot (99 %)")],
)
def test_mistakes_are_captioned_and_at_most_25(names, caption):
    mistakes = [Mistake(image, 4, 9, 0.99) for image in IMAGES[:30]]
    assert texts(confusion_matrix(np.eye(10, dtype=int), names, mistakes, "")).count(caption) == 25


def test_worst_mistakes_are_the_most_confident_wrong_answers_first():
    probabilities = np.eye(10)[LABELS]
    for image, confidence in ((5, 0.7), (3, 0.9), (8, 0.7), (1, 0.6)):
        probabilities[image] = np.where(np.arange(10) == 7, confidence, (1 - confidence) / 9)
    worst = worst_mistakes(IMAGES, LABELS, probabilities, limit=3)
    assert [(m.true, m.predicted, round(m.probability, 2)) for m in worst] == [
        (0, 7, 0.9),
        (0, 7, 0.7),
        (0, 7, 0.7),
    ]
    assert [np.array_equal(m.image * 255, IMAGES[i]) for m, i in zip(worst, (3, 5, 8), strict=True)] == [True] * 3
    assert worst_mistakes(IMAGES, LABELS, np.eye(10)[LABELS]) == []


def test_rows_are_labelled_and_hold_their_images():
    digits = IMAGES[::100]
    figure = image_rows(
        {"original": digits, "half as bright": digits / 510, "colour": np.stack([digits] * 3, 1)}, "x"
    )
    assert {"original", "half as bright", "colour", "x"} <= set(texts(figure))
    strips = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_allclose(strips[0][:, 29 * 9 :], digits[9] / 255)
    np.testing.assert_allclose(strips[1][:, :28], digits[0] / 510, rtol=1e-5)
    assert strips[2].shape == (28, 289, 3)
    assert image_rows({"dim": digits[:1] / 510}, "").axes[0].images[0].get_clim() == (0, 1)


def test_mistakes_and_rows_of_colour_images_with_seven_classes():
    grey = np.pad(IMAGES[:70], ((0, 0), (2, 2), (2, 2)))
    images = np.stack([grey, grey[::-1], np.full_like(grey, 90)], axis=1)
    labels = np.arange(70) % 7
    probabilities = np.eye(7)[(labels + (np.arange(70) < 5)) % 7]
    mistakes = worst_mistakes(images, labels, probabilities)
    assert [(m.true, m.predicted, m.image.shape) for m in mistakes] == [(i, i + 1, (32, 32, 3)) for i in range(5)]
    names = ["red", "orange", "yellow", "green", "blue", "indigo", "violet"]
    counts = np.zeros((7, 7), dtype=int)
    np.add.at(counts, (labels, probabilities.argmax(1)), 1)
    figure = confusion_matrix(counts, names, mistakes, "")
    assert {"65 of 70 right (92.86 %)", "true red\n→ orange (100 %)", *names} <= set(texts(figure))
    shown = next(axes.images[0].get_array() for axes in figure.axes if "red" in axes.get_title())
    np.testing.assert_allclose(shown, images[0].transpose(1, 2, 0) / 255)
    strip = image_rows({"original": images[:7]}, "").axes[0].images[0].get_array()
    assert strip.shape == (32, 7 * 32 + 6, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_nan_pixel_is_orange(channels):
    images = np.zeros((1, channels, 28, 28))
    images[0, 0, 3, 4] = np.nan
    figure = image_rows({"damaged": images}, "")
    texts(figure)
    (image,) = figure.axes[0].images
    colours = image.to_rgba(image.get_array())[..., :3]
    orange = (213 / 255, 94 / 255, 0)
    np.testing.assert_allclose(colours[3, 4], orange, atol=0.01)
    assert (np.isclose(colours, orange, atol=0.01).all(axis=2)).sum() == 1


def test_long_class_names_are_shortened_and_stay_different():
    names = [f"the same beginning of class {i}" for i in range(10)]
    figure = confusion_matrix(np.eye(10, dtype=int), names, [Mistake(IMAGES[0], 4, 9, 0.99)], "")
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(set(shown)) == 10 and max(map(len, shown)) == 20
    assert any(text.startswith("true the sam…") and "…lass 9 (99 %)" in text for text in texts(figure))


@pytest.mark.parametrize(("channels", "shape"), [(1, (4, 28, 28)), (2, (4, 28, 28)), (3, (4, 28, 28, 3))])
def test_images_with_any_number_of_channels_can_be_drawn(channels, shape):
    drawn = drawable(np.stack([IMAGES[:4]] * channels, axis=1))
    assert drawn.shape == shape
    np.testing.assert_allclose(drawn if channels != 3 else drawn[..., 1], IMAGES[:4] / 255)
