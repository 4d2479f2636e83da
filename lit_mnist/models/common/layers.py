"""Layers that several architectures use, and checks of their sizes."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lit_mnist.errors import UsageError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def activation(name: str) -> nn.Module:
    """Create a layer of the activation `name`, a key of `ACTIVATIONS`.

    Raises:
        UsageError: There is no such activation.

    """
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def dense_classifier(
    features: int, hidden_sizes: Sequence[int], num_classes: int, name: str, dropout: float
) -> list[nn.Module]:
    """Dense layers from features (B, features) to logits (B, num_classes).

    Each hidden layer is followed by the activation `name`, and by dropout unless `dropout` is 0.

    Raises:
        UsageError: A size is below 1, or dropout is outside [0, 1).

    """
    if hidden_sizes and min(hidden_sizes) < 1:
        raise UsageError(f"--model.hidden_sizes {list(hidden_sizes)} must hold sizes of at least 1")
    check_dropout("dropout", dropout)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([features, *hidden_sizes]):
        layers += [nn.Linear(inputs, outputs), activation(name)]
        # Left out at 0, so that the layers' numbers in the state dict are those of the network without dropout.
        layers += [nn.Dropout(dropout)] if dropout else []
    return [*layers, nn.Linear([features, *hidden_sizes][-1], num_classes)]


def doubling(inputs: int, outputs: int) -> nn.Module:
    """A transposed 3×3 convolution that doubles height and width."""
    # With stride 2 and padding 1, n pixels become 2n - 1; output_padding adds the missing row and column.
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)


def check_dropout(flag: str, rate: float) -> None:
    """Check that a dropout rate is in [0, 1).

    Raises:
        UsageError: It is not.

    """
    # nn.Dropout takes 1, which drops everything: the network would learn nothing, without an error.
    if not 0 <= rate < 1:
        raise UsageError(f"--model.{flag} {rate} must lie in [0, 1)")


def check_halving(image_shape: Sequence[int], times: int, what: str) -> None:
    """Check that an image keeps its size when it is halved and doubled `times` times.

    Raises:
        UsageError: Height or width is not a multiple of 2 ** times; the message begins with `what`.

    """
    height, width = image_shape[1:]
    if height % 2**times or width % 2**times:
        raise UsageError(
            f"{what}: {height}×{width} pixels must be divisible by {2**times}, since they are halved {times} times"
        )


def check_choice(flag: str, value: object, choices: Sequence[str]) -> None:
    """Check a hyperparameter that is one of several names; type hints are checked on the command line only.

    Raises:
        UsageError: It is none of `choices`.

    """
    if value not in choices:
        raise UsageError(f"--model.{flag} {value} must be one of {', '.join(choices)}")
