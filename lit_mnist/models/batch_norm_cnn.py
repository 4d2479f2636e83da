"""The convolutional classifier with batch normalisation and dropout (Dutta, section 2.2)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.classifier import Classifier
from lit_mnist.models.common.layers import check_dropout, dense_classifier


class BatchNormCNN(Classifier):
    """Blocks of convolution, ReLU, batch norm, 2×2 max pooling and dropout, followed by dense layers with dropout.

    The defaults give the paper's network: 688,106 trainable parameters and 128 running statistics. The paper
    states neither the activations nor the dropout rates; ReLU and the rates are this project's choice.
    """

    channels_last = True

    def __init__(
        self,
        channels: Sequence[int] = (32, 32),
        kernel_sizes: Sequence[int] = (5, 3),
        hidden_sizes: Sequence[int] = (512, 512),
        conv_dropout: float = 0.25,
        dropout: float = 0.5,
        image_shape: Sequence[int] = MNIST.image_shape,
        num_classes: int = MNIST.num_classes,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            channels: Output channels of each block's convolution.
            kernel_sizes: Kernel size of each block's convolution; stride 1, not padded.
            hidden_sizes: Neurons of each dense layer before the last.
            conv_dropout: Share of the values that are dropped after each block in training, in [0, 1).
            dropout: Share of the neurons that are dropped after each hidden dense layer in training, in [0, 1).
            image_shape: Channels, height, width; by default those of the data.
            num_classes: Number of classes; by default that of the data.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        check_dropout("conv_dropout", conv_dropout)
        depth, height, width = image_shape
        if len(channels) != len(kernel_sizes) or not channels or min(*channels, *kernel_sizes) < 1:
            raise UsageError(
                f"--model.channels {list(channels)} and --model.kernel_sizes {list(kernel_sizes)} must have the"
                " same length and be at least 1"
            )
        # 28 -> 24 -> 12 by the first block, 12 -> 10 -> 5 by the second.
        size = [height, width]
        for kernel in kernel_sizes:  # an unpadded convolution, then pooling, which rounds down
            size = [(side - kernel + 1) // 2 for side in size]
        if min(size) < 1:
            raise UsageError(
                f"--model.kernel_sizes {list(kernel_sizes)} are too large for images of {height}×{width} pixels"
            )
        # (B, 1, 28, 28) -> (B, 32, 12, 12) -> (B, 32, 5, 5)
        blocks: list[nn.Module] = []
        # Not strict: each block's input is the previous block's output, so the first list has one entry more.
        for inputs, outputs, kernel in zip([depth, *channels], channels, kernel_sizes, strict=False):
            # In the paper's order: batch norm comes after ReLU.
            blocks += [nn.Conv2d(inputs, outputs, kernel), nn.ReLU(), nn.BatchNorm2d(outputs), nn.MaxPool2d(2)]
            blocks += [nn.Dropout(conv_dropout)] if conv_dropout else []
        features = channels[-1] * size[0] * size[1]
        # (B, 800) -> (B, 512) -> (B, 512) -> (B, 10)
        dense = dense_classifier(features, hidden_sizes, num_classes, "relu", dropout)
        self.network = nn.Sequential(*blocks, nn.Flatten(), *dense)
