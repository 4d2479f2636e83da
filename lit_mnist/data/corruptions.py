"""What is done to whole batches of images on the device: noise of the papers, and rotation.

Each function takes images of shape (B, C, H, W) with values in [0, 1] and a generator on their device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """`clip(x + level · N(0, 1), 0, 1)` (Narayanam: level 0.5)."""
    noise = torch.empty_like(images).normal_(generator=generator)
    return noise.mul_(level).add_(images).clamp_(0, 1)


def salt_and_pepper(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """With u uniform for each pixel: 1 where u < level, 0 where u > 1 - level (Yaramsetty).

    So 2 · level of the pixels are replaced, and at level 0.5 all of them.
    """
    u = torch.empty_like(images).uniform_(generator=generator)
    return images.masked_fill(u > 1 - level, 0).masked_fill_(u < level, 1)


def rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Each image turned about its centre by its own angle, uniform in ±degrees; bilinear, filled with 0."""
    uniform = torch.empty(len(images), device=images.device).uniform_(generator=generator)
    angle = (2 * uniform - 1) * math.radians(degrees)
    # affine_grid works in coordinates of ±1 on both axes, so an image that is not square needs its aspect.
    aspect = images.shape[-2] / images.shape[-1]
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    rows = [torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


CORRUPTIONS = {"gaussian": gaussian, "salt_and_pepper": salt_and_pepper}
