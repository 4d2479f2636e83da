"""The base of all autoencoders."""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from lit_mnist.data.loader import Batch
from lit_mnist.errors import UsageError
from lit_mnist.models.base import LitModel, Stage, activation


class Autoencoder(LitModel):
    """Pictures to a code and back; denoising where the data are corrupted, since the target is the clean picture.

    A subclass gives `encode`: pictures (B, C, H, W) to a code, and `decode`: a code to what `output_activation`
    is yet to act on, of the pictures' shape. Whatever the loss, `mse` is logged, so that any two compare.

    Raises:
        UsageError: cross_entropy with another output than sigmoid.

    """

    def __init__(
        self,
        loss: Literal["mse", "cross_entropy"] = "mse",
        output_activation: Literal["sigmoid", "identity"] = "sigmoid",
        **optimizer: Any,
    ) -> None:
        """Take the loss and the last activation.

        Args:
            loss: Mean over pixels of the squared error, or of the binary cross-entropy.
            output_activation: What acts on the decoder's output.
            optimizer: See LitModel.

        """
        super().__init__(**optimizer)
        if loss == "cross_entropy" and output_activation != "sigmoid":
            raise UsageError("--model.loss cross_entropy needs --model.output_activation sigmoid")
        self.output = activation(output_activation)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to their code."""
        raise TypeError(f"{type(self).__name__} must define encode(x)")

    def decode(self, code: Tensor) -> Tensor:
        """A code to pictures (B, C, H, W) before the output activation."""
        raise TypeError(f"{type(self).__name__} must define decode(code)")

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (B, C, H, W) of pictures (B, C, H, W)."""
        reconstruction: Tensor = self.output(self.decode(self.encode(x)))
        return reconstruction

    def predict_step(self, batch: Tensor, batch_idx: int = 0) -> Tensor:
        """Reconstructions (B, C, H, W) of pictures (B, C, H, W)."""
        reconstruction: Tensor = self(batch)
        return reconstruction

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        if self.hparams["loss"] == "mse":
            loss = F.mse_loss(self(batch.x), batch.clean)
            mse = loss
        else:
            logits = self.decode(self.encode(batch.x))
            loss = F.binary_cross_entropy_with_logits(logits, batch.clean)
            mse = F.mse_loss(logits.detach().sigmoid(), batch.clean)
        if stage == "train":
            self._record(stage, len(batch.y), loss=loss)
        else:
            self._record(stage, len(batch.y), loss=loss, mse=mse)
        return loss
