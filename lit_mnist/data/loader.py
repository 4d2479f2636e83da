"""Batches as slices of images that lie in memory, on the device where they fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from lit_mnist.data.corruptions import CORRUPTIONS, rotate
from lit_mnist.data.randomness import keyed_generator
from lit_mnist.errors import UsageError


class Batch(NamedTuple):
    """One step's images, float32 in [0, 1] of shape (B, C, H, W), and their classes, int64 of shape (B,)."""

    x: Tensor
    """What the network sees: augmented and corrupted."""
    clean: Tensor
    """The same images before corruption: what an autoencoder is to give back."""
    y: Tensor


def as_batch(batch: Batch | Sequence[Tensor]) -> Batch:
    """The batch as a `Batch`; of a pair (x, y) the clean images are x.

    Raises:
        UsageError: it is neither a `Batch` nor a pair.

    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(batch[0], batch[0], batch[1])
    raise UsageError(f"a batch must be a pair (x, y) or a lit_mnist.data.Batch, not {_described(batch)}")


def images_of(batch: Tensor | Sequence[Tensor]) -> Tensor:
    """The images of a batch that is they alone, or that has them in front: (x,), (x, y) or a `Batch`."""
    return batch if isinstance(batch, Tensor) else batch[0]


def _described(batch: object) -> str:
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")


@dataclass(frozen=True)
class BatchTransforms:
    """What is done to each batch on its way out of memory."""

    corruption: str | None = None
    """A name in `CORRUPTIONS`."""
    noise: float = 0.0
    """The level of the corruption."""
    rotation: float = 0.0
    """Largest angle in degrees."""


class InMemoryLoader:
    """Iterates over images in memory; under DDP each rank gets its share of every batch.

    Order, noise and rotation are functions of (seed, stage, epoch, step) and nothing else, and are drawn for
    the whole batch before a rank takes its share, so that they do not depend on the number of ranks either.
    For training the epoch is the trainer's; an evaluation is the same in every epoch.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, on the same device.
        batch_size: images a step, over all ranks together.
        stage: `train` shuffles and goes by epochs; any other keeps the order.
        seed: of order and noise.
        changes: noise and rotation.
        same_epoch: give every epoch the batches of the first one, to overfit them.
        rank: this process's place among `world_size`.
        world_size: how many processes share each batch.

    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        stage: str,
        seed: int,
        changes: BatchTransforms = BatchTransforms(),
        same_epoch: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.stage, self.seed, self.changes = batch_size, stage, seed, changes
        self.same_epoch, self.rank, self.world_size = same_epoch, rank, world_size
        self.epoch = 0
        self.position = 0
        """Steps of the epoch that the next iteration leaves out."""
        self._given = 0
        self.bounds = self._train_bounds() if stage == "train" else self._evaluation_bounds()

    batch_sampler = None
    """Lightning looks for one wherever there is a sampler."""

    @property
    def sampler(self) -> Any:
        """Lightning announces each epoch to `loader.sampler.set_epoch`.

        With `overfit_batches` it warns about any sampler but a sequential one, and then keeps a loader that has no
        `dataset` as it is (lightning 2.6): there is nothing to warn about where every epoch is the same.
        """
        return SequentialSampler(range(len(self.images))) if self.same_epoch else self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and noise the next iteration gives."""
        self.epoch = epoch if self.stage == "train" and not self.same_epoch else 0

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        # A generator starts with its first batch: after the trainer has announced the epoch.
        order = self._order()
        start, self.position = self.position, 0
        for step in range(start, len(self)):
            self._given = step + 1
            yield self._batch(order[self.bounds[step] : self.bounds[step + 1]], step)

    def state_dict(self) -> dict[str, int]:
        """How many of the epoch's batches have been given."""
        return {"position": self._given % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on after those batches."""
        self.position = state["position"]

    def _train_bounds(self) -> list[int]:
        total = len(self.images)
        # Shares of one size keep the mean over ranks the mean over the batch; what is left out, fewer images
        # than there are ranks, differs from epoch to epoch.
        total -= (total % self.batch_size) % self.world_size
        return [*range(0, total, self.batch_size), total]

    def _evaluation_bounds(self) -> list[int]:
        """Batches of nearly one size, so that every rank has a share of each, and every image is in one."""
        total = len(self.images)
        count = max(1, -(-total // self.batch_size))
        return [total * i // count for i in range(count + 1)]

    def _order(self) -> Tensor:
        total = len(self.images)
        if self.stage != "train":
            return torch.arange(total, device=self.images.device)
        generator = keyed_generator(self.seed, "order", self.epoch)
        return torch.randperm(total, generator=generator).to(self.images.device)

    def _batch(self, indices: Tensor, step: int) -> Batch:
        clean = self.images.index_select(0, indices).to(torch.float32).div_(255)
        y = self.labels.index_select(0, indices)
        if self.changes.rotation:
            clean = rotate(clean, self.changes.rotation, self._generator("rotation", step))
        x = clean
        if self.changes.corruption is not None:
            corrupt = CORRUPTIONS[self.changes.corruption]
            x = corrupt(clean, self.changes.noise, self._generator("noise", step))
        if self.world_size == 1:
            return Batch(x, clean, y)
        share = slice(self.rank, None, self.world_size)
        return Batch(x[share], clean[share], y[share])

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return keyed_generator(self.seed, purpose, self.stage, self.epoch, step, device=self.images.device)
