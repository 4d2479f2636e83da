"""The base of all classifiers on an autoencoder's encoder."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_mnist.errors import UsageError
from lit_mnist.models.autoencoder import Autoencoder
from lit_mnist.models.classifier import Classifier
from lit_mnist.models.mlp import dense_classifier
from lit_mnist.models.pretrained import Pretrained


class EncoderClassifier(Classifier):
    """An encoder, then dense layers on its code, flattened.

    A subclass builds both by `_build`, and says with `freeze_encoder` when the encoder stays as it is: its weights
    get no gradients, and its batch norm goes by the statistics it has and keeps them.
    """

    channels_last = True
    encoder: nn.Module
    head: nn.Module
    pretrained: Pretrained
    encoder_frozen = False

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        self.pretrained.check()
        logits: Tensor = self.head(self.encoder(x))
        return logits

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Keep the encoder as it is, or let it learn again."""
        self.encoder_frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.encoder.train(self.training and not frozen)

    def train(self, mode: bool = True) -> "EncoderClassifier":
        """Set the mode of all but a frozen encoder, which stays in that of evaluation."""
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def on_fit_start(self) -> None:
        """Warn of an encoder that nobody has trained and nobody is going to."""
        super().on_fit_start()
        if self.encoder_frozen:
            self.pretrained.warn_if_random("the frozen encoder")

    def _build(
        self,
        encoder: nn.Module,
        checkpoint: str | None,
        hidden_sizes: Sequence[int] = (),
        hidden_activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        """Take over the encoder with the weights in `checkpoint`, and put dense layers on top."""
        shape, classes = self.hparams["image_shape"], self.hparams["num_classes"]
        features = code_size(encoder, shape)
        dense = dense_classifier(features, hidden_sizes, classes, hidden_activation, dropout)
        self.encoder, self.head = encoder, nn.Sequential(nn.Flatten(), *dense)
        self.pretrained = Pretrained(self, "encoder_checkpoint", checkpoint)
        self.pretrained.take(self.encoder, "encoder.")


def make_autoencoder(name: str, arguments: dict[str, Any] | None, image_shape: Sequence[int]) -> Autoencoder:
    """An untrained autoencoder of the class `name` for images of that shape.

    Args:
        name: A class of this package, with or without its path, or the path of any other.
        arguments: Its hyperparameters.
        image_shape: Channels, height, width.

    Raises:
        UsageError: there is no such class, or it does not take such arguments.

    """
    arguments = {"image_shape": list(image_shape), **(arguments or {})}
    if list(arguments["image_shape"]) != list(image_shape):
        raise UsageError(
            f"--model.encoder_args.image_shape {arguments['image_shape']}: --model.image_shape is"
            f" {list(image_shape)}"
        )
    autoencoder_class = _autoencoder_class(name)
    try:
        return autoencoder_class(**arguments)
    except TypeError as error:
        what = str(error).rpartition("__init__() ")[2]
        raise UsageError(f"--model.encoder_args do not fit {name}: {what}") from None
    except UsageError as error:
        raise UsageError(f"--model.encoder_args: {error}") from None


def code_size(encoder: nn.Module, image_shape: Sequence[int]) -> int:
    """How many numbers the code of one image has."""
    was_training = encoder.training
    with torch.no_grad():  # in evaluation mode, or batch norm would count this image
        size = encoder.eval()(torch.zeros(1, *image_shape)).numel()
    encoder.train(was_training)
    return int(size)


def _autoencoder_class(name: str) -> type[Autoencoder]:
    known = {cls.__name__: cls for cls in _subclasses(Autoencoder)}
    module, _, last = name.rpartition(".")
    if module in ("", "lit_mnist.models") and last in known:
        return known[last]
    try:
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError, ValueError):
        found = None
    if isinstance(found, type) and issubclass(found, Autoencoder):
        return found
    raise UsageError(f"--model.encoder {name}: there is no such autoencoder; there are {', '.join(sorted(known))}")


def _subclasses(base: type[Autoencoder]) -> list[type[Autoencoder]]:
    return [found for child in base.__subclasses__() for found in (child, *_subclasses(child))]
