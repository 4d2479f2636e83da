"""The dense classifier (Dutta, section 2.5: 784-300-10)."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.models.common.classifier import Classifier
from lit_mnist.models.common.layers import dense_classifier


class MLP(Classifier):
    """Dense layers from the pixels to the classes: 784-300-10 for hidden_sizes [300] on MNIST."""

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (300,),
        hidden_activation: str = "sigmoid",
        dropout: float = 0.0,
        image_shape: Sequence[int] = MNIST.image_shape,
        num_classes: int = MNIST.num_classes,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each hidden layer; an empty list gives a linear classifier.
            hidden_activation: Activation of the hidden layers: sigmoid, relu, leaky_relu, tanh or identity.
            dropout: Share of the hidden neurons that are dropped in training, in [0, 1).
            image_shape: Channels, height, width; by default those of the data.
            num_classes: Number of classes; by default that of the data.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        # (B, 1, 28, 28) -> (B, 784) -> (B, 300) -> (B, 10): logits, since cross_entropy applies the softmax
        # itself.
        layers = dense_classifier(math.prod(image_shape), hidden_sizes, num_classes, hidden_activation, dropout)
        self.network = nn.Sequential(nn.Flatten(), *layers)
