"""Noise and augmentation do what the papers describe, on grey and on colour images."""

import pytest
import torch
from torch import Tensor

from lit_mnist.data.corruptions import flip, gaussian, rotate, salt_and_pepper, shift
from lit_mnist.data.mini import load_mini
from lit_mnist.data.randomness import keyed_generator, keyed_seed


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return torch.from_numpy(load_mini()[0][::4]).unsqueeze(1).float() / 255


def test_gaussian_noise_is_level_times_normal_and_clipped(digits: Tensor) -> None:
    noisy = gaussian(digits, 0.5, keyed_generator(0))
    assert noisy.min() == 0 and noisy.max() == 1
    # On a pixel of 0 only the positive half of the noise remains: the mean of clip(0.5·N, 0, 1).
    x = torch.linspace(-8, 8, 100_001)
    density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
    expected = torch.trapezoid((0.5 * x).clamp(0, 1) * density, x)
    assert noisy[digits == 0].mean() == pytest.approx(float(expected), abs=2e-3)
    assert torch.equal(gaussian(digits, 0.0, keyed_generator(0)), digits)


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5])
def test_salt_and_pepper_replaces_a_share_of_twice_the_level(digits: Tensor, level: float) -> None:
    grey = torch.full_like(digits, 0.5)
    noisy = salt_and_pepper(grey, level, keyed_generator(1))
    for value in (0.0, 1.0):
        assert (noisy == value).float().mean() == pytest.approx(level, abs=3e-3)
    if level == 0.5:
        assert not (noisy == 0.5).any()


def test_rotation_uses_a_different_angle_for_each_image(digits: Tensor) -> None:
    ninety = rotate(digits[:1].expand(400, -1, -1, -1), 90, keyed_generator(2))
    assert len({image.numpy().tobytes() for image in ninety}) == 400
    assert torch.allclose(rotate(digits, 1e-6, keyed_generator(2)), digits, atol=1e-3)
    turned = rotate(digits, 10, keyed_generator(3))
    assert 0 < (turned - digits).abs().mean() < 0.05
    assert turned.sum() == pytest.approx(float(digits.sum()), rel=0.01)


def test_rotation_does_not_distort_images_that_are_not_square() -> None:
    bar = torch.zeros(200, 1, 20, 40)
    bar[:, :, 8:12, 16:24] = 1  # 4 by 8 pixels
    turned = rotate(bar, 90, keyed_generator(4))
    assert turned.sum(dim=(1, 2, 3)).sub(32).abs().max() < 4


def test_colour_channels_have_different_noise_and_the_same_rotation(digits: Tensor) -> None:
    colour = digits[:50].expand(-1, 3, -1, -1)
    for corrupt in (gaussian, salt_and_pepper):
        noisy = corrupt(colour, 0.3, keyed_generator(5))
        assert noisy.shape == colour.shape and not torch.equal(noisy[:, 0], noisy[:, 1])
    rotated = rotate(colour, 30, keyed_generator(5))
    assert torch.equal(rotated[:, 0], rotated[:, 2])
    assert torch.equal(rotated[:, :1], rotate(digits[:50], 30, keyed_generator(5)))


def test_each_image_is_shifted_by_whole_pixels_and_filled_with_0(digits: Tensor) -> None:
    dot = torch.zeros(2000, 2, 9, 7)
    dot[:, :, 4, 3] = 1
    moved = shift(dot, 3, keyed_generator(6))
    assert torch.equal(moved[:, 0], moved[:, 1])  # an image's channels move together
    counts = moved[:, 0].sum(0)
    # The dot reaches each of the 7 by 7 places, and no other, about equally often (2000 / 49 = 41).
    assert counts[1:8].min() > 15 and counts[1:8].max() < 75 and counts.sum() == 2000
    assert torch.equal(shift(digits, 0, keyed_generator(6)), digits)
    edge = shift(torch.ones(50, 1, 4, 4), 3, keyed_generator(7))
    assert ((edge == 0) | (edge == 1)).all() and len(edge.sum(dim=(1, 2, 3)).unique()) > 3


def test_half_of_the_images_are_mirrored_left_to_right(digits: Tensor) -> None:
    result = flip(digits, keyed_generator(8))
    mirrored = (result == digits.flip(-1)).all(-1).all(-1).all(-1)
    assert torch.equal(result[~mirrored], digits[~mirrored])
    assert 0.4 < mirrored.float().mean() < 0.6


def test_different_keys_give_different_seeds() -> None:
    keys = [(1, 23), (12, 3), (123,), ("1", 23), (0, 0), (0,)]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)
    assert keyed_seed(0, "order", 1) == 7021862330116196507
