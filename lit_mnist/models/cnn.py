"""The convolutional classifier (Zhang, section 2.4)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.classifier import Classifier
from lit_mnist.models.common.layers import check_dropout


class CNN(Classifier):
    """Blocks of convolution, ReLU and 2×2 max pooling, followed by one linear layer."""

    channels_last = True

    def __init__(
        self,
        channels: Sequence[int] = (16, 52),
        kernel_size: int = 5,
        image_shape: Sequence[int] = MNIST.image_shape,
        num_classes: int = MNIST.num_classes,
        dropout: float = 0.0,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            channels: Output channels of each block's convolution.
            kernel_size: Kernel size of the convolutions, odd; they have stride 1 and keep height and width.
            image_shape: Channels, height, width; by default those of the data.
            num_classes: Number of classes; by default that of the data.
            dropout: Share of the last layer's inputs that are dropped in training, in [0, 1).
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        depth, height, width = image_shape
        if kernel_size % 2 == 0:
            raise UsageError(f"--model.kernel_size {kernel_size} must be odd, so that padding keeps the size")
        if not channels or min(channels) < 1 or kernel_size < 1:
            raise UsageError(
                f"--model.channels {list(channels)} and --model.kernel_size {kernel_size} must be at least 1"
            )
        if min(height, width) >> len(channels) < 1:
            raise UsageError(f"--model.channels {list(channels)}: {height}×{width} cannot be halved that often")
        check_dropout("dropout", dropout)
        # With the defaults on MNIST: (B, 1, 28, 28) -> (B, 16, 14, 14) -> (B, 52, 7, 7).
        blocks: list[nn.Module] = []
        # Not strict: each block's input is the previous block's output, so the first list has one entry more.
        for inputs, outputs in zip([depth, *channels], channels, strict=False):
            convolution = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)  # keeps H and W
            blocks += [convolution, nn.ReLU(), nn.MaxPool2d(2)]  # halves them
        # Each pooling halves height and width, rounding down: 28, 14, 7, 3.
        features = channels[-1] * (height >> len(channels)) * (width >> len(channels))
        # Left out at 0, so that checkpoints of networks without dropout keep the names of their weights.
        head = [nn.Dropout(dropout)] if dropout else []
        # (B, 52, 7, 7) -> (B, 2548) -> (B, 10): logits, since cross_entropy applies the softmax itself.
        self.network = nn.Sequential(*blocks, nn.Flatten(), *head, nn.Linear(features, num_classes))
