"""The convolutional denoising autoencoder (Narayanam, figures 3 to 6)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.autoencoder import Autoencoder
from lit_mnist.models.common.layers import check_halving, doubling


class DenoisingConvAutoencoder(Autoencoder):
    """Convolutions, leaky ReLU and max pooling from 28×28×1 to a code of 7×7×32; transposed convolutions back.

    It removes the noise of the data (`--data.corruption`). The paper states neither the slope of the leaky ReLU
    nor which layers of the decoder have one: here all but the last, which has a sigmoid.
    """

    channels_last = True

    def __init__(
        self,
        channels: int = 32,
        negative_slope: float = 0.2,
        image_shape: Sequence[int] = MNIST.image_shape,
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            channels: Channels of every hidden layer, including the code.
            negative_slope: Slope of the leaky ReLU below 0; 0.2 is TensorFlow's default.
            image_shape: Channels, height, width; by default those of the data.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        if channels < 1:
            raise UsageError(f"--model.channels {channels} must be at least 1")
        # Two poolings, which the decoder's two transposed convolutions undo.
        check_halving(image_shape, 2, "--model.image_shape")

        def active(layer: nn.Module) -> list[nn.Module]:
            return [layer, nn.LeakyReLU(negative_slope)]

        depth = image_shape[0]
        # (B, 1, 28, 28) -> (B, 32, 14, 14) -> (B, 32, 7, 7). Padding keeps the size; only pooling changes it.
        self.encoder = nn.Sequential(
            *active(nn.Conv2d(depth, channels, 3, padding=1)),
            nn.MaxPool2d(2),
            *active(nn.Conv2d(channels, channels, 3, padding=1)),
            nn.MaxPool2d(2),
        )
        # (B, 32, 7, 7) -> (B, 32, 14, 14) -> (B, 32, 28, 28) -> (B, 1, 28, 28)
        self.decoder = nn.Sequential(
            *active(nn.Conv2d(channels, channels, 3, padding=1)),
            *active(doubling(channels, channels)),
            *active(doubling(channels, channels)),
            nn.Conv2d(channels, depth, 3, padding=1),  # its sigmoid is `Autoencoder.output`
        )
