"""The base of all classifiers."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist.data.datasets import MNIST
from lit_mnist.data.loader import Batch, images_of
from lit_mnist.models.common.base import LitModel, Stage


class Classifier(LitModel):
    """Classifies images, trained by cross-entropy.

    A subclass defines the module `network`, from images (B, C, H, W) to logits (B, num_classes), or overrides
    `forward`, which calls it.
    """

    network: nn.Module
    monitor = "val/acc"
    monitor_mode = "max"

    def __init__(self, num_classes: int = MNIST.num_classes, **optimizer: Any) -> None:
        """Set the number of classes.

        Args:
            num_classes: Number of classes.
            optimizer: See LitModel.

        """
        super().__init__(**optimizer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.network(x)
        return logits

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        """Probabilities (B, num_classes) of a batch's images; see `images_of` for the kinds of batch."""
        probabilities: Tensor = self(images_of(batch)).softmax(dim=1)
        return probabilities

    def _step(self, batch: Batch, stage: Stage) -> Tensor:
        logits = self(batch.x)  # (B, num_classes)
        loss = F.cross_entropy(logits, batch.y)
        # Stays on the device: turning it into a number would make every step wait for the GPU.
        correct = (logits.detach().argmax(dim=1) == batch.y).float().mean()
        self._record(stage, len(batch.y), loss=loss, acc=correct)
        return loss
