"""A softmax layer on stacked autoencoders, and their fine-tuning (Yaramsetty, sections IV.C and V.B)."""

from collections.abc import Sequence
from typing import Any

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.encoder_classifier import EncoderClassifier
from lit_mnist.models.stacked_autoencoder import stacked_encoder


class StackedClassifier(EncoderClassifier):
    """A softmax layer on the encoder of a StackedAutoencoder; each of the two has its own learning rate."""

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (500, 200, 100),
        hidden_activation: str = "sigmoid",
        encoder_checkpoint: str | None = None,
        encoder_lr: float = 0.0,
        image_shape: Sequence[int] = MNIST.image_shape,
        num_classes: int = MNIST.num_classes,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            hidden_sizes: Neurons of each layer of the stack, starting at the images.
            hidden_activation: Activation of the stack's layers: sigmoid, relu, leaky_relu, tanh or identity.
            encoder_checkpoint: Checkpoint of a StackedAutoencoder of those sizes; random weights without it.
            encoder_lr: Learning rate of the stack, while `lr` is that of the softmax layer; 0 freezes the stack.
            image_shape: Channels, height, width; by default those of the data.
            num_classes: Number of classes; by default that of the data.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        if encoder_lr < 0:
            raise UsageError(f"--model.encoder_lr {encoder_lr} must not be negative")
        # (B, 1, 28, 28) -> (B, 500) -> (B, 200) -> (B, 100) -> (B, 10)
        self._build(stacked_encoder(image_shape, hidden_sizes, hidden_activation), encoder_checkpoint)
        # Frozen instead of trained at a learning rate of 0, which would compute gradients for nothing.
        if encoder_lr == 0:
            self.freeze_encoder()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters to optimise; the softmax layer comes first, so that its learning rate is logged."""
        # The head has no `lr` of its own, and so uses the optimiser's, `--model.lr`.
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters())}]
        if not self.encoder_frozen:
            groups.append({"params": list(self.encoder.parameters()), "lr": self.hparams["encoder_lr"]})
        return groups
