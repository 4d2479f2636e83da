"""The base of all autoencoders."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist.data.loader import Batch, images_of
from lit_mnist.errors import UsageError
from lit_mnist.models.common.base import LitModel, Stage
from lit_mnist.models.common.layers import activation, check_choice

Loss = Literal["mse", "cross_entropy"]
Reduction = Literal["mean", "sum"]


class Autoencoder(LitModel):
    """Encodes images and reconstructs them; it denoises if the data are corrupted, since the target is clean.

    A subclass defines two modules: `encoder`, from images (B, C, H, W) to a code of any shape, and `decoder`, from
    a code to images (B, C, H, W) before the output activation. A classifier can take over the encoder.

    `mse`, the mean over pixels, is logged with every loss, so that models with different losses can be compared.

    Raises:
        UsageError: A name is unknown, or loss is cross_entropy and output_activation is not sigmoid.

    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        loss: Loss = "mse",
        reduction: Reduction = "mean",
        output_activation: Literal["sigmoid", "identity"] = "sigmoid",
        **optimizer: Any,
    ) -> None:
        """Set the loss and the output activation.

        Args:
            loss: Squared error, or binary cross-entropy.
            reduction: Mean or sum of the loss over an image's pixels; over images it is the mean. With sgd, the
                sum over n pixels acts like n times the learning rate; with adam it makes little difference.
            output_activation: Activation after the decoder.
            optimizer: See LitModel.

        """
        # The command line checks names against the type hints; models created from Python are checked here.
        super().__init__(**optimizer)
        check_choice("loss", loss, get_args(Loss))
        check_choice("reduction", reduction, get_args(Reduction))
        if loss == "cross_entropy" and output_activation != "sigmoid":
            raise UsageError("--model.loss cross_entropy needs --model.output_activation sigmoid")
        self.output = activation(output_activation)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of images (B, C, H, W)."""
        code: Tensor = self.encoder(x)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Images (B, C, H, W) before the output activation, from codes."""
        images: Tensor = self.decoder(code)
        return images

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (B, C, H, W) of images (B, C, H, W)."""
        reconstruction: Tensor = self.output(self.decode(self.encode(x)))
        return reconstruction

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        """Reconstructions (B, C, H, W) of a batch's images; see `images_of` for the kinds of batch."""
        reconstruction: Tensor = self(images_of(batch))
        return reconstruction

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        # Before the output activation, for binary_cross_entropy_with_logits: log(sigmoid(x)) of a saturated
        # sigmoid would be infinite.
        raw = self.decode(self.encode(batch.x))  # (B, C, H, W)
        loss = self._loss(raw, batch.clean, self.output)
        if stage == "train":
            # Without mse: the output activation is not needed for the cross-entropy, and costs time in each step.
            self._record(stage, len(batch.y), loss=loss)
        else:
            self._record(stage, len(batch.y), loss=loss, mse=F.mse_loss(self.output(raw), batch.clean))
        return loss

    def _loss(self, raw: Tensor, target: Tensor, output: nn.Module) -> Tensor:
        """The loss of `output(raw)` against `target`; for cross_entropy `output` must be a sigmoid."""
        if self.hparams["loss"] == "mse":
            # Against the clean images, so that an autoencoder of corrupted ones learns to denoise.
            loss = F.mse_loss(output(raw), target)
        else:
            loss = F.binary_cross_entropy_with_logits(raw, target)
        # Both losses above are means over images and pixels.
        return loss * target[0].numel() if self.hparams["reduction"] == "sum" else loss
