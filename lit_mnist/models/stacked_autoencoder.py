"""Stacked autoencoders, trained greedily layer by layer (Yaramsetty, section IV.C)."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.data.loader import Batch
from lit_mnist.errors import UsageError
from lit_mnist.models.common.autoencoder import Autoencoder
from lit_mnist.models.common.base import Stage
from lit_mnist.models.common.layers import activation
from lit_mnist.models.common.pretrained import Pretrained


class StackedAutoencoder(Autoencoder):
    """A stack of autoencoders. The last one is trained on the codes of the frozen layers below it.

    For hidden_sizes [500, 200], 500-200-500 learns to reconstruct the codes that 784-500 computes from the images.
    The loss is that of the last layer's reconstruction; `mse` is that of the images, decoded through all layers.

    Raises:
        UsageError: loss is cross_entropy and the activation is not sigmoid, or a stack with a single layer is
            given a checkpoint of the layers below.

    """

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (500,),
        hidden_activation: str = "sigmoid",
        below_checkpoint: str | None = None,
        image_shape: Sequence[int] = MNIST.image_shape,
        **autoencoder: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each layer, starting at the images; the last layer is the one to be trained.
            hidden_activation: Activation of every layer: sigmoid, relu, leaky_relu, tanh or identity.
            below_checkpoint: Checkpoint of a run with all these layers except the last; random weights without it.
            image_shape: Channels, height, width; by default those of the data.
            autoencoder: See Autoencoder.

        """
        super().__init__(**autoencoder)
        self.depth = len(hidden_sizes)
        self.encoder = stacked_encoder(image_shape, hidden_sizes, hidden_activation)  # (B, 1, 28, 28) -> (B, 500)
        if self.depth > 1 and self.hparams["loss"] == "cross_entropy" and hidden_activation != "sigmoid":
            raise UsageError(
                "--model.loss cross_entropy needs codes between 0 and 1: take --model.hidden_activation sigmoid"
            )
        if self.depth == 1 and below_checkpoint is not None:
            raise UsageError(
                "--model.below_checkpoint has no effect on the first layer: give two or more --model.hidden_sizes"
            )
        # From the last layer down. A layer has the same number as in the encoder, independent of the depth, so
        # that a stack with one more layer can load this stack's weights by name.
        sizes = [math.prod(image_shape), *hidden_sizes]
        # (B, 500) -> (B, 784) -> (B, 1, 28, 28)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for k in range(self.depth, 0, -1):
            output = nn.Identity() if k == 1 else activation(hidden_activation)
            layers[str(k)] = nn.Sequential(nn.Linear(sizes[k], sizes[k - 1]), output)
        layers["images"] = nn.Unflatten(1, tuple(image_shape))
        self.decoder = nn.Sequential(layers)
        # The last layer reconstructs images in a stack of one layer, otherwise the codes of the layer below.
        self.code_output = self.output if self.depth == 1 else activation(hidden_activation)
        # The names of the weights to be trained: those of the last layer, in both directions.
        last = (f"encoder.{self.depth}.", f"decoder.{self.depth}.")
        self.pretrained = Pretrained(self, "below_checkpoint", below_checkpoint)
        # The layers below come from the checkpoint; the last one keeps its random weights.
        self.pretrained.load_into(self, prefix="", new=last)
        # All other layers are frozen. They have neither dropout nor batch norm, so that no mode has to be set.
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(last))

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, hidden_sizes[-1]) of images (B, C, H, W)."""
        self.pretrained.check()
        return super().encode(x)

    def on_fit_start(self) -> None:
        """Warn about frozen layers with random weights."""
        super().on_fit_start()
        if self.depth > 1:
            self.pretrained.warn_if_random("the stack below the last layer")

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        self.pretrained.check()
        below = self.encoder[: self.depth]  # flattening and all layers except the last
        code = below(batch.x)  # (B, hidden_sizes[-2]), or (B, 784) for one layer
        # Without corruption, input and target are the same tensor, and a second pass would compute the same codes.
        target = code if batch.clean is batch.x else below(batch.clean)
        # The decoder's first layer without its activation, which `_loss` applies if the loss needs it.
        raw = self.decoder[0][0](self.encoder[-1](code))  # type: ignore[index]
        loss = self._loss(raw, target, self.code_output)
        # The mse of the images needs a pass through all layers, which training steps skip.
        if stage == "train":
            self._record(stage, len(batch.y), loss=loss)
        else:
            self._record(stage, len(batch.y), loss=loss, mse=F.mse_loss(self(batch.x), batch.clean))
        return loss


def stacked_encoder(image_shape: Sequence[int], hidden_sizes: Sequence[int], name: str) -> nn.Sequential:
    """Dense layers from images (B, C, H, W) to codes (B, hidden_sizes[-1]), with the activation `name` after each.

    Layer k has the name `k` in the state dict, whatever the depth; 0 flattens the images.

    Raises:
        UsageError: There are no sizes, or one is below 1.

    """
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise UsageError(f"--model.hidden_sizes {list(hidden_sizes)} must be one or more sizes of at least 1")
    sizes = [math.prod(image_shape), *hidden_sizes]
    return nn.Sequential(
        nn.Flatten(), *(nn.Sequential(nn.Linear(a, b), activation(name)) for a, b in pairwise(sizes))
    )
