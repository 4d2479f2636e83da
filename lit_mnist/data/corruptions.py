"""Noise, rotation, shifts and mirroring, applied to whole batches of images on their device.

Each function takes images of shape (B, C, H, W) with values in [0, 1] and a generator on the same device, and
returns new images of the same shape. Noise is independent in each channel; an image's channels move together.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """`clip(x + level · N(0, 1), 0, 1)`, as in Narayanam (level 0.5)."""
    # In place: one tensor for noise, sum and result instead of three in every step.
    noise = torch.empty_like(images).normal_(generator=generator)
    return noise.mul_(level).add_(images).clamp_(0, 1)


def salt_and_pepper(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Set each value with probability `level` to 1 and with probability `level` to 0, as in Yaramsetty.

    A share of 2 · level of the values is replaced: all of them at level 0.5.
    """
    # One number decides both, so that no value can be drawn for salt and for pepper.
    u = torch.empty_like(images).uniform_(generator=generator)
    return images.masked_fill(u > 1 - level, 0).masked_fill_(u < level, 1)


def rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Rotate each image about its centre by its own angle, uniform in ±degrees; bilinear, filled with 0."""
    uniform = torch.empty(len(images), device=images.device).uniform_(generator=generator)  # (B,), in [0, 1)
    angle = (2 * uniform - 1) * math.radians(degrees)  # in radians
    # affine_grid's coordinates are ±1 on both axes, so the aspect ratio of non-square images has to be undone.
    aspect = images.shape[-2] / images.shape[-1]
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    # Affine maps (B, 2, 3) from output coordinates to input coordinates, without translation.
    rows = [torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images, grid, align_corners=False)


def shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image by its own whole number of pixels, uniform in ±pixels on both axes; filled with 0."""
    count, channels, height, width = images.shape
    device = images.device
    padded = F.pad(images, [pixels] * 4)
    # One gather cuts a window out of each padded image: rows (B, 1, H, 1) and columns (B, 1, 1, W) broadcast.
    # Offsets are drawn image by image: if DDP shortens a batch, its remaining images are shifted as before.
    offsets = torch.randint(2 * pixels + 1, (count, 2, 1, 1, 1), generator=generator, device=device)
    top, left = offsets.unbind(1)
    rows = top + torch.arange(height, device=device)[:, None]
    columns = left + torch.arange(width, device=device)
    image = torch.arange(count, device=device)[:, None, None, None]
    return padded[image, torch.arange(channels, device=device)[:, None, None], rows, columns]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    mirrored = torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(generator=generator) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


CORRUPTIONS = {"gaussian": gaussian, "salt_and_pepper": salt_and_pepper}
