"""The convolutional classifier with batch normalisation and dropout (Dutta, section 2.2)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lit_mnist.errors import UsageError
from lit_mnist.models.classifier import Classifier
from lit_mnist.models.mlp import check_dropout, dense_classifier


class BatchNormCNN(Classifier):
    """Blocks of convolution, ReLU, batch norm, 2×2 max pooling and dropout, then dense layers with dropout.

    With its defaults the paper's network: 688,106 trainable parameters and 128 running statistics. The paper names
    neither the activations nor the dropout rates; ReLU and the rates here are this project's.
    """

    channels_last = True

    def __init__(
        self,
        channels: Sequence[int] = (32, 32),
        kernel_sizes: Sequence[int] = (5, 3),
        hidden_sizes: Sequence[int] = (512, 512),
        conv_dropout: float = 0.25,
        dropout: float = 0.5,
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            channels: Output channels of each block's convolution.
            kernel_sizes: Of each block's convolution; stride 1, unpadded.
            hidden_sizes: Neurons of each dense layer before the last.
            conv_dropout: Share of values dropped after each block in training, in [0, 1).
            dropout: Share of neurons dropped after each hidden dense layer in training, in [0, 1).
            image_shape: Channels, height, width.
            num_classes: How many classes there are.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        check_dropout("conv_dropout", conv_dropout)
        depth, *size = image_shape
        size = _code_size(size, channels, kernel_sizes)
        blocks: list[nn.Module] = []
        for inputs, outputs, kernel in zip([depth, *channels], channels, kernel_sizes, strict=False):
            blocks += [nn.Conv2d(inputs, outputs, kernel), nn.ReLU(), nn.BatchNorm2d(outputs), nn.MaxPool2d(2)]
            blocks += [nn.Dropout(conv_dropout)] if conv_dropout else []
        features = channels[-1] * size[0] * size[1]
        dense = dense_classifier(features, hidden_sizes, num_classes, "relu", dropout)
        self.network = nn.Sequential(*blocks, nn.Flatten(), *dense)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.network(x)
        return logits


def _code_size(size: Sequence[int], channels: Sequence[int], kernel_sizes: Sequence[int]) -> list[int]:
    """Height and width after the blocks.

    Raises:
        UsageError: the blocks cannot be built, or leave nothing of the image.

    """
    if len(channels) != len(kernel_sizes) or not channels or min(*channels, *kernel_sizes) < 1:
        raise UsageError(
            f"--model.channels {list(channels)} and --model.kernel_sizes {list(kernel_sizes)} must be as many,"
            " and at least 1 each"
        )
    left = list(size)
    for kernel in kernel_sizes:
        left = [(side - kernel + 1) // 2 for side in left]
    if min(left) < 1:
        raise UsageError(f"--model.kernel_sizes {list(kernel_sizes)} leave nothing of {size[0]}×{size[1]} pixels")
    return left
