"""The base of all autoencoders."""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist.data.loader import Batch, images_of
from lit_mnist.errors import UsageError
from lit_mnist.models.base import LitModel, Stage, activation


class Autoencoder(LitModel):
    """Images to a code and back; denoising where the data are corrupted, since the target is the clean image.

    A subclass gives two modules, so that another model can take over the first: `encoder`, from images
    (B, C, H, W) to a code, and `decoder`, from a code to what `output_activation` is yet to act on, of the
    images' shape. Whatever the loss, `mse` is logged as the mean over pixels, so that any two compare.

    Raises:
        UsageError: cross_entropy with another output than sigmoid.

    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        loss: Literal["mse", "cross_entropy"] = "mse",
        reduction: Literal["mean", "sum"] = "mean",
        output_activation: Literal["sigmoid", "identity"] = "sigmoid",
        **optimizer: Any,
    ) -> None:
        """Take the loss and the last activation.

        Args:
            loss: Squared error, or binary cross-entropy.
            reduction: Of the loss over an image's pixels; over images it is the mean. With sgd, a sum over n
                pixels is n times the learning rate; adam hardly tells them apart.
            output_activation: What acts on the decoder's output.
            optimizer: See LitModel.

        """
        super().__init__(**optimizer)
        if loss == "cross_entropy" and output_activation != "sigmoid":
            raise UsageError("--model.loss cross_entropy needs --model.output_activation sigmoid")
        self.output = activation(output_activation)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to their code."""
        code: Tensor = self.encoder(x)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """A code to images (B, C, H, W) before the output activation."""
        images: Tensor = self.decoder(code)
        return images

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (B, C, H, W) of images (B, C, H, W)."""
        reconstruction: Tensor = self.output(self.decode(self.encode(x)))
        return reconstruction

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        """Reconstructions (B, C, H, W) of images (B, C, H, W), alone or in front of a batch."""
        reconstruction: Tensor = self(images_of(batch))
        return reconstruction

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        raw = self.decode(self.encode(batch.x))
        loss = self._loss(raw, batch.clean, self.output)
        if stage == "train":
            self._record(stage, len(batch.y), loss=loss)
        else:
            self._record(stage, len(batch.y), loss=loss, mse=F.mse_loss(self.output(raw), batch.clean))
        return loss

    def _loss(self, raw: Tensor, target: Tensor, output: nn.Module) -> Tensor:
        """The loss of what `output` makes of `raw`; for cross_entropy that must be a sigmoid."""
        if self.hparams["loss"] == "mse":
            loss = F.mse_loss(output(raw), target)
        else:
            loss = F.binary_cross_entropy_with_logits(raw, target)
        return loss * target[0].numel() if self.hparams["reduction"] == "sum" else loss
