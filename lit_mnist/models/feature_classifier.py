"""The classifier on an autoencoder's features (Zhang, sections 2.3 and 3.3)."""

from collections.abc import Sequence
from typing import Any

from lit_mnist.data.datasets import MNIST
from lit_mnist.models.common.encoder_classifier import EncoderClassifier, make_autoencoder


class FeatureClassifier(EncoderClassifier):
    """Dense layers on the code of any autoencoder, whose encoder is frozen or trained with them.

    Zhang's network is 98-1000-1000-10 with ReLU on the frozen encoder of 784-98-784.
    """

    def __init__(
        self,
        encoder: str = "DenseAutoencoder",
        encoder_args: dict[str, Any] | None = None,
        encoder_checkpoint: str | None = None,
        freeze: bool = True,
        hidden_sizes: Sequence[int] = (1000, 1000),
        hidden_activation: str = "relu",
        dropout: float = 0.0,
        image_shape: Sequence[int] = MNIST.image_shape,
        num_classes: int = MNIST.num_classes,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            encoder: Class of the autoencoder whose encoder is used.
            encoder_args: Hyperparameters of that autoencoder; those of its training have no effect here.
            encoder_checkpoint: Checkpoint of a run of that autoencoder; random weights without it.
            freeze: Freeze the encoder.
            hidden_sizes: Neurons of each hidden layer on the code.
            hidden_activation: Activation of those layers: sigmoid, relu, leaky_relu, tanh or identity.
            dropout: Share of the hidden neurons that are dropped in training, in [0, 1).
            image_shape: Channels, height, width; by default those of the data.
            num_classes: Number of classes; by default that of the data.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        # Create the whole autoencoder, because its class builds the encoder.
        source = make_autoencoder(encoder, encoder_args, image_shape)
        # Keep only the encoder: a decoder would be stored in every checkpoint and never used.
        # (B, 1, 28, 28) -> code (B, 98) -> (B, 1000) -> (B, 1000) -> (B, 10)
        self._build(source.encoder, encoder_checkpoint, hidden_sizes, hidden_activation, dropout)
        if freeze:
            self.freeze_encoder()
