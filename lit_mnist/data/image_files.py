"""An image file from anywhere, brought to MNIST's convention: light on dark, the digit centred by its mass.

The convention is LeCun et al.'s (1998): the digit fits a box of 20×20 pixels, in an image of 28×28 whose canvas
is 0, with the centre of mass in the middle.
"""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_mnist.errors import UsageError

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Only what Pillow decodes by itself: for others, such as EPS, it starts an external program.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
DIGIT_SHARE = 20 / 28
# A drawing that reaches this share of the image's side fills it on purpose.
FILLS = 0.9
# Of 255: what is fainter, such as JPEG's ripples or the grain of paper, is no ink.
FAINT = 64
LEAST_CONTRAST = 16
ORIENTATION = 0x0112


def read_image(path: Path, size: tuple[int, int] = (28, 28)) -> tuple[Grey, list[str]]:
    """Return the image as uint8 (H, W), light on a canvas of 0, and notes on what was done to it.

    A grey image that has `size` (H, W) and is light on dark comes back unchanged; any other of that size keeps
    its place and scale. Larger ones are cropped to the digit, which is centred, unless it fills the image.
    Raises UsageError, one line that names the file, if it is missing, damaged, no image or too large.
    """
    image, notes = _open(path)
    width, height = image.size
    grey = _grey(image, notes)
    if grey.min() == grey.max():
        return np.zeros(size, np.uint8), [*notes, "blank: every pixel has the same value"]
    if np.median(_border(grey)) > 127.5:
        grey = 255 - grey
        notes.append("inverted: dark on light")
    if grey.shape == size:
        return grey, notes
    grey = _stretched(grey, notes)
    notes.append(f"resized from {width}×{height}")
    return _fitted(grey, size, notes), notes


def _open(path: Path) -> tuple[Image.Image, list[str]]:
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {wrong}; give an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return _upright(image)
    except UnidentifiedImageError:
        raise UsageError(f"{path} is no image that can be read; known are {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UsageError(
            f"{path} has too many pixels; make it smaller, {Image.MAX_IMAGE_PIXELS} at most"
        ) from None
    # On damaged files Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, EOFError, …
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path} cannot be read, it may be truncated or damaged: {reason}") from error


def _upright(image: Image.Image) -> tuple[Image.Image, list[str]]:
    notes = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"the first of {frames} frames")
    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        notes.append("turned upright by its EXIF orientation")
    return ImageOps.exif_transpose(image), notes


def _grey(image: Image.Image, notes: list[str]) -> Grey:
    if image.mode == "L" and not image.has_transparency_data:
        return np.array(image)
    notes.append(f"converted from {image.mode}")
    if image.mode.startswith(("I", "F")):
        return _eight_bits(np.asarray(image, dtype=np.float32))
    if image.has_transparency_data:
        return _on_canvas(np.asarray(image.convert("RGBA").convert("LA"), dtype=np.float32))
    if image.mode == "LAB":
        return np.array(image.getchannel("L"))
    return np.array(image.convert("RGB").convert("L"))


def _eight_bits(values: Floats) -> Grey:
    """Scale deeper greys by the smallest usual range, 1, 255 or 65535, that holds them all."""
    values = np.maximum(np.nan_to_num(values, posinf=0), 0)
    peak = values.max()
    full = next((scale for scale in (1, 255, 65535) if peak <= scale), peak)
    return _bytes(values * (255 / full))


def _on_canvas(grey_and_alpha: Floats) -> Grey:
    """Lay a transparent image (H, W, 2) on the canvas that its ink was meant for."""
    grey, alpha = grey_and_alpha[..., 0], grey_and_alpha[..., 1] / 255
    border, border_alpha = _border(grey), _border(alpha)
    if np.median(border_alpha) > 0.5:
        # Only corners or holes are transparent: the canvas is in the image.
        canvas = float(np.median(border[border_alpha > 0.5]))
    else:
        ink = (grey * alpha).sum() / max(alpha.sum(), 1)
        canvas = 255.0 if ink < 127.5 else 0.0
    return _bytes(grey * alpha + canvas * (1 - alpha))


def _border(image: NDArray[np.generic]) -> Floats:
    edges = (image[0], image[-1], image[1:-1, 0], image[1:-1, -1])
    return np.concatenate(edges).astype(np.float32)


def _stretched(grey: Grey, notes: list[str]) -> Grey:
    """Spread the greys, so that the canvas is 0 and the lightest ink 255."""
    canvas, peak = float(np.median(_border(grey))), float(grey.max())
    if (canvas, peak) == (0, 255) or peak - canvas < LEAST_CONTRAST:
        return grey
    notes.append(f"contrast stretched from {canvas:.0f}–{peak:.0f} to 0–255")
    table = np.clip((np.arange(256) - canvas) * (255 / (peak - canvas)), 0, 255)
    return _bytes(table)[grey]


def _bytes(values: NDArray[np.floating]) -> Grey:
    rounded: Grey = np.rint(values).astype(np.uint8)
    return rounded


def _fitted(grey: Grey, size: tuple[int, int], notes: list[str]) -> Grey:
    digit = _cropped(grey)
    larger = grey.shape[0] > size[0] or grey.shape[1] > size[1]
    if larger and max(digit.shape) < FILLS * max(grey.shape):
        notes.append("cropped to the digit and centred")
        return _centred(digit, size)
    if larger:
        notes.append("not centred: the ink fills the image")
    height, width = grey.shape
    scale = min(size[0] / height, size[1] / width)
    # Padded after the resizing: a strip of a million pixels would make a square of a million million.
    fitted = _resized(grey, (max(1, round(height * scale)), max(1, round(width * scale))))
    if fitted.shape != size:
        shape = "a square" if size[0] == size[1] else f"the shape of {size[1]}×{size[0]}"
        notes.append(f"padded to {shape}")
    offsets = ((size[0] - fitted.shape[0]) // 2, (size[1] - fitted.shape[1]) // 2)
    return _placed(fitted, size, offsets)


def _cropped(grey: Grey) -> Grey:
    ink = grey > FAINT
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else grey


def _centred(digit: Grey, size: tuple[int, int]) -> Grey:
    scale = DIGIT_SHARE * min(size) / max(digit.shape)
    fitted = _resized(digit, (max(1, round(digit.shape[0] * scale)), max(1, round(digit.shape[1] * scale))))
    # Shrinking pales thin strokes, and every MNIST digit reaches 250 or more.
    fitted = _bytes(fitted * (255 / max(int(fitted.max()), 1)))
    offsets = [_offset(fitted.sum(axis=1 - axis), size[axis]) for axis in (0, 1)]
    return _placed(fitted, size, (offsets[0], offsets[1]))


def _offset(mass: NDArray[np.integer], side: int) -> int:
    """Return where to put a profile of mass, so that its centre is in the middle and none of it outside."""
    centre = float(np.arange(len(mass)) @ mass / max(int(mass.sum()), 1))
    return min(max(round(side / 2 - centre), 0), side - len(mass))


def _placed(grey: Grey, shape: tuple[int, int], offsets: tuple[int, int]) -> Grey:
    (top, left), (height, width) = offsets, grey.shape
    canvas = np.zeros(shape, np.uint8)
    canvas[top : top + height, left : left + width] = grey
    return canvas


def _resized(grey: Grey, shape: tuple[int, int]) -> Grey:
    # LANCZOS rings, which would leave traces on the canvas: it serves only where there is little to average.
    shrinks = grey.shape[0] >= 2 * shape[0]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(grey).resize((shape[1], shape[0]), method))
