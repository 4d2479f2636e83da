"""The classifier on an autoencoder's features (Zhang, sections 2.3 and 3.3)."""

from collections.abc import Sequence
from typing import Any

from lit_mnist.models.encoder_classifier import EncoderClassifier, make_autoencoder


class FeatureClassifier(EncoderClassifier):
    """Dense layers on the code of any autoencoder, whose encoder is frozen or learns along.

    Zhang's is 98-1000-1000-10 with ReLU on the frozen encoder of 784-98-784.
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
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        **optimizer: Any,
    ) -> None:
        """Build the layers.

        Args:
            encoder: Class of the autoencoder whose encoder it is.
            encoder_args: Its hyperparameters; those that only matter to its training change nothing here.
            encoder_checkpoint: Checkpoint of a run of that autoencoder; without it the weights are random.
            freeze: Whether the encoder stays as it is.
            hidden_sizes: Neurons of each hidden layer on the code.
            hidden_activation: Of those layers: sigmoid, relu, leaky_relu, tanh or identity.
            dropout: Share of each hidden layer's neurons that are dropped in training, in [0, 1).
            image_shape: Channels, height, width.
            num_classes: How many classes there are.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        source = make_autoencoder(encoder, encoder_args, image_shape)
        self._build(source.encoder, encoder_checkpoint, hidden_sizes, hidden_activation, dropout)
        if freeze:
            self.freeze_encoder()
