"""The dense autoencoder (Zhang, section 2.2)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.autoencoder import Autoencoder
from lit_mnist.models.common.layers import activation


class DenseAutoencoder(Autoencoder):
    """Dense layers to the code, mirrored in the decoder: 784-98-784 for hidden_sizes [98] on MNIST.

    The paper does not state the output activation.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (98,),
        hidden_activation: str = "sigmoid",
        image_shape: Sequence[int] = MNIST.image_shape,
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each layer of the encoder; the last is the code.
            hidden_activation: Activation of the hidden layers: sigmoid, relu, leaky_relu, tanh or identity.
            image_shape: Channels, height, width; by default those of the data.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise UsageError(f"--model.hidden_sizes {list(hidden_sizes)} must hold sizes of at least 1")
        sizes = [math.prod(image_shape), *hidden_sizes]  # 784, 98

        def dense(sizes: Sequence[int]) -> list[nn.Module]:
            layers = [(nn.Linear(a, b), activation(hidden_activation)) for a, b in pairwise(sizes)]
            return [layer for pair in layers for layer in pair]

        # (B, 1, 28, 28) -> (B, 784) -> (B, 98)
        self.encoder = nn.Sequential(nn.Flatten(), *dense(sizes))
        # (B, 98) -> (B, 784) -> (B, 1, 28, 28)
        # Ends without an activation: `Autoencoder` applies the output activation, except inside cross-entropy.
        self.decoder = nn.Sequential(
            *dense(sizes[:0:-1]),  # from the code back to the first hidden layer
            nn.Linear(sizes[1], sizes[0]),
            nn.Unflatten(1, tuple(image_shape)),
        )
