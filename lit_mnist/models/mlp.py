"""The dense classifier (Dutta, section 2.5: 784-300-10)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lit_mnist.errors import UsageError
from lit_mnist.models.base import activation
from lit_mnist.models.classifier import Classifier


class MLP(Classifier):
    """Fully connected layers from the pixels to the classes: 784-300-10 for hidden_sizes [300]."""

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (300,),
        hidden_activation: str = "sigmoid",
        dropout: float = 0.0,
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each hidden layer; none makes a linear classifier.
            hidden_activation: Of every hidden layer: sigmoid, relu, leaky_relu, tanh or identity.
            dropout: Share of each hidden layer's neurons that are dropped in training, in [0, 1).
            image_shape: Channels, height, width.
            num_classes: How many classes there are.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        layers = dense_classifier(math.prod(image_shape), hidden_sizes, num_classes, hidden_activation, dropout)
        self.network = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.network(x)
        return logits


def dense_classifier(
    features: int, hidden_sizes: Sequence[int], num_classes: int, name: str, dropout: float
) -> list[nn.Module]:
    """Layers from (B, features) to logits (B, num_classes); the activation `name` after each hidden one.

    Raises:
        UsageError: a size below 1, or a dropout outside [0, 1).

    """
    if hidden_sizes and min(hidden_sizes) < 1:
        raise UsageError(f"--model.hidden_sizes {list(hidden_sizes)} must hold sizes of at least 1")
    check_dropout("dropout", dropout)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([features, *hidden_sizes]):
        layers += [nn.Linear(inputs, outputs), activation(name)]
        layers += [nn.Dropout(dropout)] if dropout else []
    return [*layers, nn.Linear([features, *hidden_sizes][-1], num_classes)]


def check_dropout(flag: str, rate: float) -> None:
    """Refuse a dropout rate that would leave nothing, or is none.

    Raises:
        UsageError: it lies outside [0, 1).

    """
    if not 0 <= rate < 1:
        raise UsageError(f"--model.{flag} {rate} must lie in [0, 1)")
