"""Image files of any format, mode and size are converted to a network's input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_mnist.data.image_files import FORMATS, read_image
from lit_mnist.data.mini import load_mini
from lit_mnist.errors import UsageError

DIGITS = load_mini()[2][50::100]
GREY = (1, 28, 28)
ORIENTATION, TURNED = 0x0112, 6


def read_grey(path, shape=GREY):
    """The image (H, W) that `read_image` returns for one channel, and its notes."""
    image, notes = read_image(path, shape)
    assert image.shape == shape and image.dtype == np.uint8
    return image[0], notes


def enlarged(digit, scale=10, canvas=(400, 500), corner=(100, 20)):
    """A light digit somewhere on a large dark canvas."""
    image = np.zeros(canvas, np.uint8)
    place = tuple(slice(start, start + 28 * scale) for start in corner)
    image[place] = np.kron(digit, np.ones((scale, scale), np.uint8))
    return image


def transparent(grey, ink):
    """An RGBA image with ink of one grey value; `grey` (H, W) says how opaque it is."""
    return Image.fromarray(np.dstack([np.full_like(grey, ink)] * 3 + [grey]))


DRAWINGS = {
    "L": (Image.fromarray, "resized from 500×400"),
    "dark on light": (lambda grey: Image.fromarray(255 - grey), "inverted: dark on light"),
    "RGB": (lambda grey: Image.fromarray(grey).convert("RGB"), "converted from RGB"),
    "P": (lambda grey: Image.fromarray(255 - grey).convert("P"), "converted from P"),
    "1": (lambda grey: Image.fromarray(grey > 127), "converted from 1"),
    "CMYK": (lambda grey: Image.fromarray(255 - grey).convert("CMYK"), "converted from CMYK"),
    "I;16": (lambda grey: Image.fromarray(grey.astype(np.uint16) * 257), "converted from I;16"),
    "I": (lambda grey: Image.fromarray(grey.astype(np.int32)), "converted from I"),
    "F": (lambda grey: Image.fromarray(grey.astype(np.float32) / 255), "converted from F"),
    "black ink, transparent": (lambda grey: transparent(grey, 0), "inverted: dark on light"),
    "white ink, transparent": (lambda grey: transparent(grey, 255), "converted from RGBA"),
    "pencil on grey paper": (
        lambda grey: Image.fromarray(200 - grey // 2),
        "contrast stretched from 55–182 to 0–255",
    ),
}
"""By kind: a function that draws a digit (H, W), light on dark, and the expected note."""


@pytest.mark.parametrize("kind", DRAWINGS)
def test_a_digit_is_recovered_from_any_kind_of_drawing(tmp_path: Path, kind):
    draw, note = DRAWINGS[kind]
    for digit in DIGITS:
        draw(enlarged(digit)).save(tmp_path / "digit.tif")
        image, notes = read_grey(tmp_path / "digit.tif")
        assert np.corrcoef(image.ravel(), digit.ravel())[0, 1] > 0.75
        assert abs(image.mean() - digit.mean()) < 15
        assert note in notes and "cropped to the digit and centred" in notes


def test_a_digit_of_the_right_size_is_returned_unchanged(tmp_path: Path):
    for digit in DIGITS:
        Image.fromarray(digit).save(tmp_path / "digit.png")
        image, notes = read_grey(tmp_path / "digit.png")
        assert np.array_equal(image, digit) and notes == []


def test_a_dark_digit_of_the_right_size_is_only_inverted(tmp_path: Path):
    Image.fromarray(255 - DIGITS[3]).save(tmp_path / "digit.png")
    image, notes = read_grey(tmp_path / "digit.png")
    assert np.array_equal(image, DIGITS[3]) and notes == ["inverted: dark on light"]


def test_exif_orientation_is_applied(tmp_path: Path):
    sideways = Image.fromarray(enlarged(DIGITS[7])).rotate(90, expand=True)
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    sideways.save(tmp_path / "digit.jpg", exif=exif)
    image, notes = read_grey(tmp_path / "digit.jpg")
    assert np.corrcoef(image.ravel(), DIGITS[7].ravel())[0, 1] > 0.75
    assert "turned upright by its EXIF orientation" in notes


def test_a_drawing_that_fills_the_image_is_padded_to_a_square(tmp_path: Path):
    Image.fromarray(np.tile(np.uint8([0, 255, 255, 255, 0]).repeat(20), (280, 1))).save(tmp_path / "bar.png")
    image, notes = read_grey(tmp_path / "bar.png")
    assert notes == [
        "resized from 100×280",
        "not centred: the ink fills the image",
        "padded to a square",
    ]
    assert image[:, :11].max() == 0 and image[:, 12:16].min() == 255 and image[:, 17:].max() == 0


def test_small_images_are_enlarged_to_any_size(tmp_path: Path):
    Image.fromarray(DIGITS[0]).resize((14, 14), Image.Resampling.BOX).save(tmp_path / "small.png")
    assert np.corrcoef(read_grey(tmp_path / "small.png")[0].ravel(), DIGITS[0].ravel())[0, 1] > 0.9
    assert read_grey(tmp_path / "small.png", (1, 32, 40))[0].shape == (32, 40)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_blank_image_becomes_an_empty_canvas(tmp_path: Path, value):
    Image.new("L", (50, 40), value).save(tmp_path / "blank.png")
    image, notes = read_grey(tmp_path / "blank.png")
    assert not image.any() and notes == ["blank: every pixel has the same value"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_a_one_line_error(tmp_path: Path, kind):
    path = tmp_path / "digit"
    Image.fromarray(enlarged(DIGITS[0])).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"digit cannot be read, it may be truncated or damaged: .+"):
        read_image(path, GREY)


def test_the_error_names_a_file_that_is_no_readable_image(tmp_path: Path):
    (tmp_path / "notes.png").write_text("no image")
    Image.fromarray(DIGITS[0]).save(tmp_path / "digit.eps")
    Image.new("1", (9500, 9500)).save(tmp_path / "huge.png")
    wrong = {
        "": "is a folder",
        "gone.png": "does not exist",
        "notes.png": "is not an image",
        "digit.eps": "is not an image",
        "huge.png": "too many pixels",
    }
    for name, reason in wrong.items():
        with pytest.raises(UsageError) as error:
            read_image(tmp_path / name, GREY)
        assert str(tmp_path / name) in str(error.value) and reason in str(error.value)
        assert "\n" not in str(error.value)


def test_a_network_with_three_channels_gets_the_colours(tmp_path: Path):
    colour = np.dstack([DIGITS[3], DIGITS[4], DIGITS[5]])
    Image.fromarray(colour).save(tmp_path / "colour.png")
    image, notes = read_image(tmp_path / "colour.png", (3, 28, 28))
    assert np.array_equal(image, colour.transpose(2, 0, 1)) and notes == []
    Image.fromarray(np.kron(colour, np.ones((4, 2, 1), np.uint8))).save(tmp_path / "colour.png")
    image, notes = read_image(tmp_path / "colour.png", (3, 32, 32))
    assert image.shape == (3, 32, 32) and notes == ["resized from 56×112", "padded to a square"]
    assert not image[:, :, :8].any() and not image[:, :, 24:].any()
    expected = np.array(Image.fromarray(DIGITS[4]).resize((16, 32), Image.Resampling.BOX))
    assert np.corrcoef(image[1, :, 8:24].ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "F"])
def test_images_of_any_mode_become_colour_images(tmp_path: Path, mode):
    pixels = {"I;16": DIGITS[6].astype(np.uint16) * 257, "F": DIGITS[6].astype(np.float32) / 255}
    image = Image.fromarray(pixels.get(mode, DIGITS[6]))
    (image if mode in pixels else image.convert(mode)).save(tmp_path / "digit.tif")
    image, notes = read_image(tmp_path / "digit.tif", (3, 28, 28))
    assert notes == [f"converted from {mode}"]
    assert all(np.abs(channel.astype(int) - DIGITS[6]).max() <= 1 for channel in image)


def test_a_network_with_two_channels_gets_the_grey_image_twice(tmp_path: Path):
    Image.fromarray(DIGITS[0]).save(tmp_path / "digit.png")
    assert np.array_equal(read_image(tmp_path / "digit.png", (2, 28, 28))[0], np.stack([DIGITS[0]] * 2))
