"""Stacked autoencoders, trained greedily layer by layer (Yaramsetty, section IV.C)."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist.data.loader import Batch
from lit_mnist.errors import UsageError
from lit_mnist.models.autoencoder import Autoencoder
from lit_mnist.models.base import Stage, activation
from lit_mnist.models.pretrained import Pretrained


class StackedAutoencoder(Autoencoder):
    """A stack of autoencoders of which the last learns, on the codes of those below it, which are frozen.

    For hidden_sizes [500, 200] the images' codes by 784-500 are what 500-200-500 learns to give back. The loss
    is that of the layer's own reconstruction; `mse` is that of the images, decoded through the whole stack.

    Raises:
        UsageError: cross_entropy of codes that are not those of sigmoids, or a checkpoint for no layer.

    """

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (500,),
        hidden_activation: str = "sigmoid",
        below_checkpoint: str | None = None,
        image_shape: Sequence[int] = (1, 28, 28),
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each layer from the images up; the last is the one to be trained.
            hidden_activation: Of every layer: sigmoid, relu, leaky_relu, tanh or identity.
            below_checkpoint: Checkpoint of a run with all these layers but the last; without it they are random.
            image_shape: Channels, height, width.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        self.depth = len(hidden_sizes)
        self.encoder = stacked_encoder(image_shape, hidden_sizes, hidden_activation)
        self._check(below_checkpoint)
        self.decoder = _decoder(image_shape, hidden_sizes, hidden_activation)
        self.code_output = self.output if self.depth == 1 else activation(hidden_activation)
        last = (f"encoder.{self.depth}.", f"decoder.{self.depth}.")
        self.pretrained = Pretrained(self, "below_checkpoint", below_checkpoint)
        self.pretrained.take(self, prefix="", new=last)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(last))

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to codes (B, hidden_sizes[-1])."""
        self.pretrained.check()
        return super().encode(x)

    def on_fit_start(self) -> None:
        """Warn of layers that nobody has trained and nobody is going to."""
        super().on_fit_start()
        if self.depth > 1:
            self.pretrained.warn_if_random("what lies below the last layer")

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        self.pretrained.check()
        code = self._below(batch.x)
        target = code if batch.clean is batch.x else self._below(batch.clean)
        raw = self.decoder[0][0](self.encoder[-1](code))  # type: ignore[index]
        loss = self._loss(raw, target, self.code_output)
        if stage == "train":
            self._record(stage, len(batch.y), loss=loss)
        else:
            self._record(stage, len(batch.y), loss=loss, mse=F.mse_loss(self(batch.x), batch.clean))
        return loss

    def _below(self, x: Tensor) -> Tensor:
        """What the last layer is given: the pixels (B, C·H·W), or the codes of the layers below."""
        for i in range(self.depth):
            x = self.encoder[i](x)
        return x

    def _check(self, below_checkpoint: str | None) -> None:
        h = self.hparams
        if self.depth > 1 and h["loss"] == "cross_entropy" and h["hidden_activation"] != "sigmoid":
            raise UsageError("--model.loss cross_entropy of codes needs --model.hidden_activation sigmoid")
        if self.depth == 1 and below_checkpoint is not None:
            raise UsageError("--model.below_checkpoint has no effect: below the first layer there is none")


def stacked_encoder(image_shape: Sequence[int], hidden_sizes: Sequence[int], name: str) -> nn.Sequential:
    """Images (B, C, H, W) to codes (B, hidden_sizes[-1]); layer k under the name `k`, whatever the depth.

    Raises:
        UsageError: no sizes, or one below 1.

    """
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise UsageError(f"--model.hidden_sizes {list(hidden_sizes)} must hold sizes of at least 1")
    sizes = [math.prod(image_shape), *hidden_sizes]
    return nn.Sequential(
        nn.Flatten(), *(nn.Sequential(nn.Linear(a, b), activation(name)) for a, b in pairwise(sizes))
    )


def _decoder(image_shape: Sequence[int], hidden_sizes: Sequence[int], name: str) -> nn.Sequential:
    """Codes back through every layer, from the last one down; each under its number, as in the encoder."""
    sizes = [math.prod(image_shape), *hidden_sizes]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(len(hidden_sizes), 0, -1):
        output = nn.Identity() if k == 1 else activation(name)
        layers[str(k)] = nn.Sequential(nn.Linear(sizes[k], sizes[k - 1]), output)
    layers["images"] = nn.Unflatten(1, tuple(image_shape))
    return nn.Sequential(layers)
