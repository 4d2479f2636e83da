"""The softmax layer on stacked autoencoders, and their fine-tuning (Yaramsetty, sections IV.C and V.B)."""

from collections.abc import Sequence
from typing import Any

from lit_mnist.errors import UsageError
from lit_mnist.models.encoder_classifier import EncoderClassifier
from lit_mnist.models.stacked_autoencoder import stacked_encoder


class StackedClassifier(EncoderClassifier):
    """A softmax layer on the encoders of a StackedAutoencoder, each side with a learning rate of its own."""

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (500, 200, 100),
        hidden_activation: str = "sigmoid",
        encoder_checkpoint: str | None = None,
        encoder_lr: float = 0.0,
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each layer of the stack, from the images up.
            hidden_activation: Of every layer of the stack: sigmoid, relu, leaky_relu, tanh or identity.
            encoder_checkpoint: Checkpoint of the StackedAutoencoder of those sizes; without it they are random.
            encoder_lr: Learning rate of the stack, beside the `lr` of the softmax layer; 0 freezes it.
            image_shape: Channels, height, width.
            num_classes: How many classes there are.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        if encoder_lr < 0:
            raise UsageError(f"--model.encoder_lr {encoder_lr} must not be negative")
        self._build(stacked_encoder(image_shape, hidden_sizes, hidden_activation), encoder_checkpoint)
        if encoder_lr == 0:
            self.freeze_encoder()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser moves: the softmax layer first, whose rate is the one that is logged."""
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters())}]
        if not self.encoder_frozen:
            groups.append({"params": list(self.encoder.parameters()), "lr": self.hparams["encoder_lr"]})
        return groups
