from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_mnist.data.image_files import FORMATS, read_image
from lit_mnist.data.mini import load_mini
from lit_mnist.errors import UsageError

DIGITS = load_mini()[2][50::100]
ORIENTATION, TURNED = 0x0112, 6


def enlarged(digit, scale=10, canvas=(400, 500), corner=(100, 20)):
    """A light digit somewhere on a large dark canvas."""
    image = np.zeros(canvas, np.uint8)
    place = tuple(slice(start, start + 28 * scale) for start in corner)
    image[place] = np.kron(digit, np.ones((scale, scale), np.uint8))
    return image


def transparent(grey, ink):
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


@pytest.mark.parametrize("kind", DRAWINGS)
def test_a_digit_comes_back_from_any_drawing_of_it(tmp_path: Path, kind):
    draw, note = DRAWINGS[kind]
    for digit in DIGITS:
        draw(enlarged(digit)).save(tmp_path / "digit.tif")
        image, notes = read_image(tmp_path / "digit.tif")
        assert (image.shape, image.dtype) == ((28, 28), np.uint8)
        assert np.corrcoef(image.ravel(), digit.ravel())[0, 1] > 0.75
        assert abs(image.mean() - digit.mean()) < 15
        assert note in notes and "cropped to the digit and centred" in notes


def test_a_digit_of_the_right_size_is_untouched(tmp_path: Path):
    for digit in DIGITS:
        Image.fromarray(digit).save(tmp_path / "digit.png")
        image, notes = read_image(tmp_path / "digit.png")
        assert np.array_equal(image, digit) and notes == []


def test_a_dark_digit_of_the_right_size_is_only_inverted(tmp_path: Path):
    Image.fromarray(255 - DIGITS[3]).save(tmp_path / "digit.png")
    image, notes = read_image(tmp_path / "digit.png")
    assert np.array_equal(image, DIGITS[3]) and notes == ["inverted: dark on light"]


def test_a_photograph_is_turned_upright(tmp_path: Path):
    sideways = Image.fromarray(enlarged(DIGITS[7])).rotate(90, expand=True)
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    sideways.save(tmp_path / "digit.jpg", exif=exif)
    image, notes = read_image(tmp_path / "digit.jpg")
    assert np.corrcoef(image.ravel(), DIGITS[7].ravel())[0, 1] > 0.75
    assert "turned upright by its EXIF orientation" in notes


def test_a_image_that_its_ink_fills_is_padded_to_a_square(tmp_path: Path):
    Image.fromarray(np.tile(np.uint8([0, 255, 255, 255, 0]).repeat(20), (280, 1))).save(tmp_path / "bar.png")
    image, notes = read_image(tmp_path / "bar.png")
    assert notes == [
        "resized from 100×280",
        "not centred: the ink fills the image",
        "padded to a square",
    ]
    assert image[:, :11].max() == 0 and image[:, 12:16].min() == 255 and image[:, 17:].max() == 0


def test_small_images_grow_and_other_sizes_are_kept_to(tmp_path: Path):
    Image.fromarray(DIGITS[0]).resize((14, 14), Image.Resampling.BOX).save(tmp_path / "small.png")
    assert np.corrcoef(read_image(tmp_path / "small.png")[0].ravel(), DIGITS[0].ravel())[0, 1] > 0.9
    assert read_image(tmp_path / "small.png", size=(32, 40))[0].shape == (32, 40)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_blank_image_is_an_empty_canvas(tmp_path: Path, value):
    Image.new("L", (50, 40), value).save(tmp_path / "blank.png")
    image, notes = read_image(tmp_path / "blank.png")
    assert not image.any() and notes == ["blank: every pixel has the same value"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_a_line_and_not_a_traceback(tmp_path: Path, kind):
    path = tmp_path / "digit"
    Image.fromarray(enlarged(DIGITS[0])).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"digit cannot be read, it may be truncated or damaged: .+"):
        read_image(path)


def test_other_files_are_refused_by_name(tmp_path: Path):
    (tmp_path / "notes.png").write_text("no image")
    Image.fromarray(DIGITS[0]).save(tmp_path / "digit.eps")
    Image.new("1", (9500, 9500)).save(tmp_path / "huge.png")
    wrong = {
        "": "is a folder",
        "gone.png": "does not exist",
        "notes.png": "is no image",
        "digit.eps": "is no image",
        "huge.png": "too many pixels",
    }
    for name, reason in wrong.items():
        with pytest.raises(UsageError) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and reason in str(error.value)
        assert "\n" not in str(error.value)
