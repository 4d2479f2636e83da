"""The base of all classifiers on an autoencoder's encoder."""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from lit_mnist.data.loader import InMemoryLoader
from lit_mnist.errors import UsageError
from lit_mnist.models.common.autoencoder import Autoencoder
from lit_mnist.models.common.classifier import Classifier
from lit_mnist.models.common.layers import dense_classifier
from lit_mnist.models.common.pretrained import Pretrained
from lit_mnist.slurm import memory_of_job


class EncoderClassifier(Classifier):
    """An encoder, followed by dense layers on its flattened code.

    A subclass builds both with `_build`. While the encoder is frozen (`freeze_encoder`) its weights get no
    gradients, and its batch norm neither uses nor updates the statistics of batches.
    """

    channels_last = True
    encoder: nn.Module
    head: nn.Module
    pretrained: Pretrained
    encoder_frozen = False
    _code_shape: torch.Size | None = None
    """Shape of a code while loaders serve codes instead of images."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W), or of their codes while the loaders serve these."""
        # Without its pretrained encoder, the network would give plausible but wrong answers.
        self.pretrained.check()
        # A batch is recognised as codes by its shape; `_codes` refuses codes that have the shape of images.
        if x.shape[1:] == self._code_shape:
            of_codes: Tensor = self.head(x)
            return of_codes
        logits: Tensor = self.head(self.encoder(x))
        return logits

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Freeze the encoder, or unfreeze it."""
        self.encoder_frozen = frozen
        self.encoder.requires_grad_(not frozen)
        # Batch norm and dropout follow the mode, not requires_grad.
        self.encoder.train(self.training and not frozen)

    def train(self, mode: bool = True) -> "EncoderClassifier":
        """Set the training mode, except for a frozen encoder, which stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            # super().train() has changed the encoder's mode too, and its batch norm would update its statistics.
            self.encoder.eval()
        return self

    def serve_codes(self, epochs: int) -> None:
        """Let the trainer's loaders serve the frozen encoder's codes, computed once, unless they do already.

        An image's code is constant while the encoder is frozen and the images are neither corrupted nor augmented.
        Loaders of other types are left unchanged, as are loaders whose codes would need too much memory, and
        loaders that the trainer limits to some of their batches, where computing all codes would cost more than it
        saves.

        Args:
            epochs: Total number of epochs with a frozen encoder; with a single epoch nothing would be saved.

        """
        if epochs < 2:
            return
        trainer = self.trainer
        # Lightning's list has one entry per validation loader, none without validation.
        val_batches = [*trainer.num_val_batches, 0][0]
        for loader, batches in (
            (trainer.train_dataloader, trainer.num_training_batches),
            (trainer.val_dataloaders, val_batches),
        ):
            if (
                isinstance(loader, InMemoryLoader)
                and loader.is_constant
                and not loader.serves_features
                and batches == len(loader)
                and (codes := self._codes(loader)) is not None
            ):
                self._code_shape = codes.shape[1:]
                loader.serve(codes)

    def serve_images(self) -> None:
        """Let the loaders serve images again, after `serve_codes`."""
        self._code_shape = None
        for loader in (self.trainer.train_dataloader, self.trainer.val_dataloaders):
            if isinstance(loader, InMemoryLoader):
                loader.serve(None)

    def _codes(self, loader: InMemoryLoader) -> Tensor | None:
        """The codes of the loader's images; None if they need too much memory, or look like images."""
        precision = self.trainer.precision_plugin

        def encode(images: Tensor) -> Tensor:
            inputs = images.to(self.device, torch.float32).div_(255)  # as InMemoryLoader makes them
            codes: Tensor = self.encoder(precision.convert_input(inputs))
            return codes.to(images.device)  # which may be the CPU, where the images did not fit the GPU

        # In batches of the same size as in training: a different size could change the last bits.
        batches = torch.split(loader.images, loader.batch_size)
        with torch.no_grad(), precision.forward_context():
            first = encode(batches[0])
            # Computed from the first batch: a code's size depends on the encoder, its dtype on the precision.
            needed = first[0].nbytes * len(loader.images)
            if first.device.type == "cpu":
                needed *= self.trainer.num_devices  # one process each
            if first.shape[1:] == tuple(self.hparams["image_shape"]) or not _fits(needed, first.device):
                return None
            # Filled part by part: `torch.cat` of the parts would take twice the memory for a moment.
            codes = first.new_empty(len(loader.images), *first.shape[1:])
            codes[: len(first)] = first
            for part, batch in list(zip(torch.split(codes, loader.batch_size), batches, strict=True))[1:]:
                part.copy_(encode(batch))
        return codes

    def on_fit_start(self) -> None:
        """Warn about a frozen encoder with random weights."""
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
        """Load the encoder's weights from `checkpoint`, if there is one, and build dense layers on its code."""
        with torch.no_grad():  # in evaluation mode, so that batch norm does not count this image
            code = encoder.eval()(torch.zeros(1, *self.hparams["image_shape"]))
        encoder.train(self.training)
        # No hyperparameter states the code's shape, so it is found by encoding one image.
        dense = dense_classifier(
            code.numel(), hidden_sizes, self.hparams["num_classes"], hidden_activation, dropout
        )
        self.encoder, self.head = encoder, nn.Sequential(nn.Flatten(), *dense)
        self.pretrained = Pretrained(self, "encoder_checkpoint", checkpoint)
        self.pretrained.load_into(self.encoder, "encoder.")


def _fits(size: int, device: torch.device) -> bool:
    """True if `size` bytes take at most a quarter of the memory of `device`, or of the SLURM job.

    The total counts, not the memory that is free now: a resumed training must make the same decision as an
    uninterrupted one, since codes that are computed in other batches may differ in their last bits.
    """
    # mem_get_info returns (free, total) in bytes.
    if device.type == "cuda":
        return 4 * size <= torch.cuda.mem_get_info(device)[1]
    return device.type == "cpu" and 4 * size <= min(memory_of_job() or math.inf, psutil.virtual_memory().total)


def make_autoencoder(name: str, arguments: dict[str, Any] | None, image_shape: Sequence[int]) -> Autoencoder:
    """Create an untrained autoencoder for images of a given shape.

    Args:
        name: Name of a class in this package, or the path of any class.
        arguments: Hyperparameters of the class.
        image_shape: Channels, height, width.

    Raises:
        UsageError: There is no such class, or it does not take these arguments.

    """
    # The encoder gets this model's images: a different shape in its arguments would be ignored silently.
    arguments = {"image_shape": list(image_shape), **(arguments or {})}
    if list(arguments["image_shape"]) != list(image_shape):
        raise UsageError(
            f"--model.encoder_args.image_shape {arguments['image_shape']}: --model.image_shape is"
            f" {list(image_shape)}"
        )
    # By name among all subclasses that are imported, which includes a user's own; else by path.
    known, pending = {}, [Autoencoder]
    while pending:
        subclasses = pending.pop().__subclasses__()
        known.update({cls.__name__: cls for cls in subclasses})
        pending += subclasses
    module, _, last = name.rpartition(".")
    found: Any = known.get(last) if module in ("", "lit_mnist.models") else None
    if found is None:
        try:
            found = getattr(importlib.import_module(module), last)
        except (ImportError, AttributeError, ValueError):
            found = None
    if not (isinstance(found, type) and issubclass(found, Autoencoder)):
        listed = ", ".join(sorted(known))
        raise UsageError(f"--model.encoder {name}: there is no such autoencoder; there are {listed}")
    try:
        return found(**arguments)
    except TypeError as error:
        # Python's message without the class name, which the new message has: "got an unexpected keyword argument".
        what = str(error).rpartition("__init__() ")[2]
        raise UsageError(f"--model.encoder_args: {name} does not accept them: {what}") from None
    except UsageError as error:
        raise UsageError(f"--model.encoder_args: {error}") from None
