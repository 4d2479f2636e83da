"""The small convolutional autoencoder (Dutta, abstract; the paper states no layers)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.autoencoder import Autoencoder
from lit_mnist.models.common.layers import check_halving, doubling


class ConvAutoencoder(Autoencoder):
    """Strided convolutions to a code with few channels, and transposed convolutions back.

    The paper compares a dense and a convolutional autoencoder by speed and size, without stating the layers of
    either. The defaults give a code of 2×7×7 = 98 numbers, as 784-98-784 has, with a fourteenth of its parameters.
    """

    channels_last = True

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        code_channels: int = 2,
        image_shape: Sequence[int] = MNIST.image_shape,
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            channels: Output channels of each convolution of stride 2; each halves height and width.
            code_channels: Channels of the code.
            image_shape: Channels, height, width; by default those of the data.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        if not channels or min(*channels, code_channels) < 1:
            raise UsageError(
                f"--model.channels {list(channels)} and --model.code_channels {code_channels} must be at least 1"
            )
        check_halving(image_shape, len(channels), f"--model.channels {list(channels)}")
        sizes = [image_shape[0], *channels]  # 1, 16, 32
        # (B, 1, 28, 28) -> (B, 16, 14, 14) -> (B, 32, 7, 7) -> (B, 2, 7, 7)
        # The code has no activation, so that its numbers are not limited to one sign.
        self.encoder = nn.Sequential(
            *(layer for a, b in pairwise(sizes) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())),
            nn.Conv2d(sizes[-1], code_channels, 3, padding=1),
        )
        # (B, 2, 7, 7) -> (B, 32, 7, 7) -> (B, 16, 14, 14) -> (B, 1, 28, 28)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_channels, sizes[-1], 3, padding=1),
            # ReLU comes before each layer here, so that the last one, whose output is the image, has none.
            *(layer for a, b in pairwise(sizes[::-1]) for layer in (nn.ReLU(), doubling(a, b))),
        )
