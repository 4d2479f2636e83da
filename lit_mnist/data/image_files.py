"""Read any image file as a network's input.

Grey images follow MNIST's convention (LeCun et al. 1998): light on dark, scaled so that the digit fits a box of
20×20 of the 28×28 pixels, on a canvas of 0, with the centre of mass in the middle. Colour
images are scaled and padded.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_mnist.errors import UsageError, one_line

Pixels = NDArray[np.uint8]
"""(H, W) or (H, W, 3)."""
Floats = NDArray[np.float32]

# Only formats that Pillow decodes itself: for some others, such as EPS, it starts an external program.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
DIGIT_SHARE = 20 / 28
"""Side of the box around an MNIST digit, as a share of the image's side."""
FILLING_SHARE = 0.9
"""A drawing that spans at least this share of the image's side is meant to fill the image, and is not cropped."""
FAINT = 64
"""Grey value, of 255, up to which a pixel is not ink but, for example, a JPEG artefact or the grain of paper."""
MIN_CONTRAST = 16
"""Smallest range of grey values, of 255, that is stretched; a smaller one would mostly be noise."""
EXIF_ORIENTATION = 0x0112


def read_image(path: Path, image_shape: Sequence[int]) -> tuple[Pixels, list[str]]:
    """Read an image file as a network's input.

    For one channel the image becomes grey, and light on dark; if it is larger than the network's input it is
    cropped to the drawing, which is centred, unless the drawing fills the image. A grey image of the right size
    that is light on dark is returned unchanged. For three channels, colours are kept, and the image is scaled to
    fit and padded. Any other number of channels gets the grey image in each of them.

    Args:
        path: A file in one of `FORMATS`.
        image_shape: Channels, height and width of the network's input.

    Returns:
        The image, uint8 of shape `image_shape`, and notes on what was done to it.

    Raises:
        UsageError: The file is missing, damaged, not an image or too large. The message is one line that names it.

    """
    channels, height, width = image_shape
    # Each step that changes the image appends to `notes`, which `predict` prints.
    image, notes = _open(path)
    if channels == 3:
        return _read_colour(image, (height, width), notes).transpose(2, 0, 1), notes
    grey = _read_grey(image, (height, width), notes)  # (H, W)
    return np.repeat(grey[None], channels, axis=0), notes


def _open(path: Path) -> tuple[Image.Image, list[str]]:
    """The decoded image, turned upright, and notes on it."""
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {wrong}; give an image file")
    notes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow only warns of an image with more pixels than MAX_IMAGE_PIXELS, and refuses twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    notes.append(f"the first of {frames} frames")
                image.load()
                if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                    notes.append("turned upright by its EXIF orientation")
                return ImageOps.exif_transpose(image), notes
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image in a supported format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UsageError(
            f"{path} has too many pixels; make it smaller, {Image.MAX_IMAGE_PIXELS} at most"
        ) from None
    # On damaged files Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, EOFError, …
    except Exception as error:
        raise UsageError(f"{path} cannot be read, it may be truncated or damaged: {one_line(error)}") from error


def _read_colour(image: Image.Image, size: tuple[int, int], notes: list[str]) -> Pixels:
    """The image in RGB, (H, W, 3), scaled to fit `size` and padded with black."""
    # Modes: I and F are deep greys, P a palette; transparency may come with any of them.
    if image.mode != "RGB" or image.has_transparency_data:
        notes.append(f"converted from {image.mode}")
    if image.mode.startswith(("I", "F")):
        colour = np.repeat(_to_eight_bits(np.asarray(image, dtype=np.float32))[..., None], 3, axis=2)
    elif image.has_transparency_data:
        # Transparent pixels become black, like the padding.
        transparent = image.convert("RGBA")
        black = Image.new("RGBA", transparent.size, (0, 0, 0, 255))
        colour = np.array(Image.alpha_composite(black, transparent).convert("RGB"))
    else:
        colour = np.array(image.convert("RGB"))
    if colour.shape[:2] == size:
        return colour
    notes.append(f"resized from {image.width}×{image.height}")
    return _scaled_to_fit(colour, size, notes)


def _read_grey(image: Image.Image, size: tuple[int, int], notes: list[str]) -> Pixels:
    """The image in grey, (H, W), by MNIST's convention."""
    grey = _to_grey(image, notes)
    if grey.min() == grey.max():
        # Nothing to centre, and no contrast to stretch.
        notes.append("blank: every pixel has the same value")
        return np.zeros(size, np.uint8)
    # The border shows the background; the median ignores strokes that touch the border.
    if np.median(_border(grey)) > 127.5:
        grey = 255 - grey
        notes.append("inverted: dark on light")
    if grey.shape == size:
        return grey
    # Not for an image of the right size, returned above: it may come from the dataset.
    canvas, peak = float(np.median(_border(grey))), float(grey.max())
    if (canvas, peak) != (0, 255) and peak - canvas >= MIN_CONTRAST:
        notes.append(f"contrast stretched from {canvas:.0f}–{peak:.0f} to 0–255")
        # A lookup table (256,) of the new value of each grey value.
        grey = _to_uint8(np.clip((np.arange(256) - canvas) * (255 / (peak - canvas)), 0, 255))[grey]
    notes.append(f"resized from {image.width}×{image.height}")
    # Only a larger image is taken for a sheet with a drawing somewhere on it.
    if grey.shape[0] > size[0] or grey.shape[1] > size[1]:
        ink = grey > FAINT
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        drawing = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else grey
        if max(drawing.shape) < FILLING_SHARE * max(grey.shape):
            notes.append("cropped to the digit and centred")
            return _centred(drawing, size)
        notes.append("not centred: the ink fills the image")
    return _scaled_to_fit(grey, size, notes)


def _to_grey(image: Image.Image, notes: list[str]) -> Pixels:
    if image.mode == "L" and not image.has_transparency_data:
        return np.array(image)
    notes.append(f"converted from {image.mode}")
    if image.mode.startswith(("I", "F")):
        return _to_eight_bits(np.asarray(image, dtype=np.float32))
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA").convert("LA"), dtype=np.float32)
        grey, alpha = pixels[..., 0], pixels[..., 1] / 255
        border, border_alpha = _border(grey), _border(alpha)
        if np.median(border_alpha) > 0.5:
            # Only corners or holes are transparent: the canvas is part of the image.
            canvas = float(np.median(border[border_alpha > 0.5]))
        else:
            # The ink alone is opaque: dark ink was drawn for a light canvas, light ink for a dark one.
            ink = (grey * alpha).sum() / max(alpha.sum(), 1)
            canvas = 255.0 if ink < 127.5 else 0.0
        return _to_uint8(grey * alpha + canvas * (1 - alpha))
    # The first channel of LAB is the lightness.
    if image.mode == "LAB":
        return np.array(image.getchannel("L"))
    return np.array(image.convert("RGB").convert("L"))


def _to_eight_bits(values: Floats) -> Pixels:
    """Scale deeper greys to 0..255 by the smallest usual range (1, 255 or 65535) that holds them all."""
    # NaN and negative values become black.
    values = np.maximum(np.nan_to_num(values, posinf=0), 0)
    peak = values.max()
    full = next((scale for scale in (1, 255, 65535) if peak <= scale), peak)
    return _to_uint8(values * (255 / full))


def _to_uint8(values: NDArray[np.floating]) -> Pixels:
    rounded: Pixels = np.rint(values).astype(np.uint8)
    return rounded


def _border(image: NDArray[np.generic]) -> Floats:
    edges = (image[0], image[-1], image[1:-1, 0], image[1:-1, -1])
    return np.concatenate(edges).astype(np.float32)


def _scaled_to_fit(pixels: Pixels, size: tuple[int, int], notes: list[str]) -> Pixels:
    """Scale (H, W, ...) to fit `size` at its aspect ratio, and pad with 0 on both sides."""
    height, width = pixels.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    # Padded after scaling: padding a strip of 1,000,000×1 pixels first would need 10¹² pixels.
    scaled = _resized(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
    if scaled.shape[:2] != size:
        shape = "a square" if size[0] == size[1] else f"the shape of {size[1]}×{size[0]}"
        notes.append(f"padded to {shape}")
    offsets = (size[0] - scaled.shape[0]) // 2, (size[1] - scaled.shape[1]) // 2
    return _placed(scaled, size, offsets)


def _centred(drawing: Pixels, size: tuple[int, int]) -> Pixels:
    """Scale a drawing (H, W) to MNIST's box, and place its centre of mass in the middle of `size`."""
    # By the longer side, as for MNIST: a 1 is as high as an 8, and not as wide.
    scale = DIGIT_SHARE * min(size) / max(drawing.shape)
    scaled = _resized(drawing, (max(1, round(drawing.shape[0] * scale)), max(1, round(drawing.shape[1] * scale))))
    # Shrinking makes thin strokes paler, while every MNIST digit reaches 250 or more.
    scaled = _to_uint8(scaled * (255 / max(int(scaled.max()), 1)))
    offsets = []
    for axis in (0, 1):
        mass = scaled.sum(axis=1 - axis)
        centre = float(np.arange(len(mass)) @ mass / max(int(mass.sum()), 1))
        # Clipped, since a drawing with its mass at one end would extend beyond the border.
        offsets.append(min(max(round(size[axis] / 2 - centre), 0), size[axis] - len(mass)))
    return _placed(scaled, size, (offsets[0], offsets[1]))


def _placed(pixels: Pixels, size: tuple[int, int], offsets: tuple[int, int]) -> Pixels:
    (top, left), (height, width) = offsets, pixels.shape[:2]
    canvas = np.zeros((*size, *pixels.shape[2:]), np.uint8)
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    # Lanczos rings, which leaves traces on the canvas: it is used only where there is little to average.
    # A box filter averages all pixels that become one, as a scanner does.
    shrinks = pixels.shape[0] >= 2 * size[0]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), method))
