"""The small convolutional autoencoder (Dutta, abstract; the paper states no layers)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from lit_mnist.errors import UsageError
from lit_mnist.models.autoencoder import Autoencoder


class ConvAutoencoder(Autoencoder):
    """Strided convolutions to a code of few channels, and transposed ones back.

    The paper compares an autoencoder with a convolutional one by speed and size, and states the layers of neither.
    The defaults give a code of 2×7×7 = 98 numbers, as many as 784-98-784 has, with a fourteenth of its parameters.
    """

    channels_last = True

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        code_channels: int = 2,
        image_shape: Sequence[int] = (1, 28, 28),
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            channels: Output channels of each convolution of stride 2, which halves height and width.
            code_channels: Channels of the code.
            image_shape: Channels, height, width.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        if not channels or min(*channels, code_channels) < 1:
            raise UsageError(
                f"--model.channels {list(channels)} and --model.code_channels {code_channels} must be at least 1"
            )
        check_halving(image_shape, len(channels), f"--model.channels {list(channels)}")
        sizes = [image_shape[0], *channels]
        self.encoder = nn.Sequential(
            *(layer for a, b in pairwise(sizes) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())),
            nn.Conv2d(sizes[-1], code_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code_channels, sizes[-1], 3, padding=1),
            *(layer for a, b in pairwise(sizes[::-1]) for layer in (nn.ReLU(), doubling(a, b))),
        )


def doubling(inputs: int, outputs: int) -> nn.Module:
    """A transposed 3×3 convolution that doubles height and width."""
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)


def check_halving(image_shape: Sequence[int], times: int, what: str) -> None:
    """Refuse images that do not come back in their size.

    Raises:
        UsageError: height or width is no multiple of 2 ** times.

    """
    height, width = image_shape[1:]
    if height % 2**times or width % 2**times:
        raise UsageError(f"{what}: {height}×{width} pixels cannot be halved {times} times without a rest")
