"""The convolutional autoencoder with batch normalisation (Panagakis, section 3.1)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.autoencoder import Autoencoder
from lit_mnist.models.common.layers import check_halving


class BatchNormAutoencoder(Autoencoder):
    """3×3 convolutions with ReLU and batch norm, in blocks separated by 2×2 max pooling; the decoder mirrors them.

    The paper's encoder is 32, 32, pool, 64, pool, 128, 256, which gives a code of 256×7×7. The paper says only
    that the decoder has the same layers in reverse order. Here each convolution swaps its input and output
    channels, nearest-neighbour upsampling replaces pooling, and the last convolution, whose output is the image,
    has no ReLU or batch norm.
    """

    channels_last = True

    def __init__(
        self,
        blocks: Sequence[Sequence[int]] = ((32, 32), (64,), (128, 256)),
        image_shape: Sequence[int] = MNIST.image_shape,
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            blocks: Output channels of the encoder's convolutions, one list per block.
            image_shape: Channels, height, width; by default those of the data.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        sizes = [list(block) for block in blocks]
        if not sizes or not all(block and min(block) >= 1 for block in sizes):
            raise UsageError(f"--model.blocks {sizes} must hold lists of sizes of at least 1")
        check_halving(image_shape, len(sizes) - 1, f"--model.blocks {sizes}")
        # With the defaults: (B, 1, 28, 28) -> (B, 32, 28, 28) -> (B, 64, 14, 14) -> (B, 256, 7, 7), and back.
        # Built from the image towards the code: each layer is appended to the encoder, and its counterpart, with
        # channels swapped, is inserted at the start of the decoder.
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        depth = image_shape[0]
        for i, block in enumerate(sizes):
            if i:  # before every block but the first
                encoder.append(nn.MaxPool2d(2))
                decoder.insert(0, nn.Upsample(scale_factor=2))
            for outputs in block:
                encoder += _convolution(depth, outputs)
                decoder = [*_convolution(outputs, depth), *decoder]
                depth = outputs  # channels that the next convolution gets
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder[:-2])  # without the last ReLU and batch norm


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)]
