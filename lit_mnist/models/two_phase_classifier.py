"""The classifier that is trained in two phases (Panagakis, section 3.2)."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.nn.parallel import DistributedDataParallel

from lit_mnist.data.datasets import MNIST
from lit_mnist.errors import UsageError
from lit_mnist.models.common.encoder_classifier import EncoderClassifier, make_autoencoder


class TwoPhaseClassifier(EncoderClassifier):
    """Dense layers on an encoder that is frozen for the first epochs; after that the whole network is trained.

    The phase is a function of the epoch, so that a resumed training needs no other state: the optimiser has all
    parameters from the start, and skips those without a gradient. DDP expects a gradient for every parameter
    unless told otherwise: `--trainer.strategy ddp_find_unused_parameters_true`.
    """

    def __init__(
        self,
        encoder: str = "BatchNormAutoencoder",
        encoder_args: dict[str, Any] | None = None,
        encoder_checkpoint: str | None = None,
        frozen_epochs: int = 100,
        patience: int | None = None,
        hidden_sizes: Sequence[int] = (128,),
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
            frozen_epochs: Number of epochs for which the encoder is frozen.
            patience: Stop the second phase after this many validations without a lower val/loss; never by default.
            hidden_sizes: Neurons of each hidden layer on the code.
            hidden_activation: Activation of those layers: sigmoid, relu, leaky_relu, tanh or identity.
            dropout: Share of the hidden neurons that are dropped in training, in [0, 1).
            image_shape: Channels, height, width; by default those of the data.
            num_classes: Number of classes; by default that of the data.
            optimizer: See LitModel.

        """
        super().__init__(num_classes=num_classes, **optimizer)
        if frozen_epochs < 0:
            raise UsageError(f"--model.frozen_epochs {frozen_epochs} must not be negative")
        if patience is not None and patience < 1:
            raise UsageError(f"--model.patience {patience} must be at least 1")
        # (B, 1, 28, 28) -> code (B, 256, 7, 7) -> (B, 12544) -> (B, 128) -> (B, 10)
        source = make_autoencoder(encoder, encoder_args, image_shape)
        self._build(source.encoder, encoder_checkpoint, hidden_sizes, hidden_activation, dropout)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, including those that are frozen in the first phase."""
        # The groups have to be the same in every checkpoint, whichever phase wrote it. The optimisers of
        # torch.optim skip a parameter without a gradient.
        return [{"params": list(self.parameters())}]

    def configure_callbacks(self) -> list[Callback]:
        """Early stopping in the second phase, if there is a patience."""
        patience = self.hparams["patience"]
        return [] if patience is None else [LateEarlyStopping(self.hparams["frozen_epochs"], patience)]

    def on_train_start(self) -> None:
        """Enter the phase of the current epoch, which a resumed training may be in the middle of.

        Raises:
            UsageError: DDP would wait for the frozen encoder's gradients.

        """
        super().on_train_start()
        # DDP waits for the gradient of every parameter that required one when the model was wrapped, before the
        # encoder was frozen.
        wrapped = self.trainer.strategy.model
        waits = isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters
        if waits and self.hparams["frozen_epochs"]:
            raise UsageError("--trainer.strategy: take ddp_find_unused_parameters_true for a frozen encoder")
        if self.current_epoch < self.hparams["frozen_epochs"]:
            self.pretrained.warn_if_random("the encoder, frozen at first,")
        # After the checkpoint was restored, so that `current_epoch` is that of the resumed training.
        self._enter_phase()

    def on_train_epoch_start(self) -> None:
        """Enter the phase of the epoch that starts."""
        super().on_train_epoch_start()
        self._enter_phase()

    def _enter_phase(self) -> None:
        # In both hooks: Lightning does not call on_train_epoch_start for an epoch that is resumed in its middle.
        # A code is a constant only while the encoder is frozen: see `serve_codes`.
        epochs = self.hparams["frozen_epochs"]
        self.freeze_encoder(self.current_epoch < epochs)
        if self.encoder_frozen:
            self.serve_codes(epochs)
        else:
            self.serve_images()


class LateEarlyStopping(EarlyStopping):
    """Early stopping on val/loss that ignores all epochs before `start_epoch`."""

    def __init__(self, start_epoch: int, patience: int) -> None:
        # Checked in on_validation_end, which is overridden below, and not at the end of the training epoch.
        super().__init__("val/loss", patience=patience, check_on_train_epoch_end=False)
        self.start_epoch = start_epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check val/loss, from `start_epoch` on."""
        if trainer.current_epoch >= self.start_epoch:
            super().on_validation_end(trainer, pl_module)
