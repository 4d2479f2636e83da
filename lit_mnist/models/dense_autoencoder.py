"""The dense autoencoder (Zhang, section 2.2)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from lit_mnist.errors import UsageError
from lit_mnist.models.autoencoder import Autoencoder
from lit_mnist.models.base import activation


class DenseAutoencoder(Autoencoder):
    """Fully connected layers to the code, and their mirror image back: 784-98-784 for hidden_sizes [98].

    The paper leaves the output's activation open.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (98,),
        hidden_activation: str = "sigmoid",
        image_shape: Sequence[int] = (1, 28, 28),
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each hidden layer down to the code, which is the last.
            hidden_activation: Of every hidden layer: sigmoid, relu, leaky_relu, tanh or identity.
            image_shape: Channels, height, width.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise UsageError(f"--model.hidden_sizes {list(hidden_sizes)} must hold sizes of at least 1")
        sizes = [math.prod(image_shape), *hidden_sizes]
        self.encoder = nn.Sequential(nn.Flatten(), *_dense(sizes, hidden_activation))
        self.decoder = nn.Sequential(
            *_dense(sizes[:0:-1], hidden_activation),
            nn.Linear(sizes[1], sizes[0]),
            nn.Unflatten(1, tuple(image_shape)),
        )


def _dense(sizes: Sequence[int], name: str) -> list[nn.Module]:
    return [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation(name))]
