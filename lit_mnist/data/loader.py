"""Batches from a dataset in memory, on the device if it fits there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from lit_mnist.data.corruptions import CORRUPTIONS, flip, rotate, shift
from lit_mnist.data.randomness import keyed_generator
from lit_mnist.errors import UsageError

NOISE_BLOCK = 10_000
"""Images whose fixed noise comes from one generator. Another number changes the noise."""


class Batch(NamedTuple):
    """One step's images, float32 in [0, 1] of shape (B, C, H, W), and their labels, int64 of shape (B,)."""

    x: Tensor
    """The network's input: augmented and corrupted."""
    clean: Tensor
    """The same images without corruption: an autoencoder's target."""
    y: Tensor
    """Labels."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to the three tensors; if input and target are the same tensor, they remain so."""
        clean = function(self.clean)
        return Batch(clean if self.x is self.clean else function(self.x), clean, function(self.y))


def as_batch(batch: Batch | Sequence[Tensor]) -> Batch:
    """Convert a pair (x, y) to a `Batch` whose clean images are x; a `Batch` is returned as it is.

    Raises:
        UsageError: The argument is neither.

    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(batch[0], batch[0], batch[1])
    kind = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
    raise UsageError(f"a batch must be a pair (x, y) or a lit_mnist.data.Batch, not {kind}")


def images_of(batch: Tensor | Sequence[Tensor]) -> Tensor:
    """The images of a batch for prediction: the tensor itself, or the first of (x,), (x, y) or a `Batch`."""
    return batch if isinstance(batch, Tensor) else batch[0]


@dataclass(frozen=True)
class BatchTransforms:
    """What is applied to each batch of a loader."""

    corruption: str | None = None
    """A name in `CORRUPTIONS`."""
    noise: float = 0.0
    """Level of the corruption."""
    rotation: float = 0.0
    """Largest angle in degrees."""
    fixed_noise: bool = False
    """True if an image has the same noise in every epoch; without augmentation only."""
    shift: int = 0
    """Largest shift on each axis in pixels."""
    flip: bool = False
    """True if images are mirrored left to right with probability 1/2."""

    @property
    def augments(self) -> bool:
        """True if images are moved, and so differ from epoch to epoch even without noise."""
        return bool(self.rotation or self.shift or self.flip)


class InMemoryLoader:
    """Iterates over images in memory; under DDP each rank takes its share of every batch.

    Order, noise and augmentation are functions of (seed, stage, epoch, step) only. They are drawn for the whole
    batch before a rank takes its share, and so do not depend on the number of ranks. Training uses the trainer's
    epoch; an evaluation is the same in every epoch.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, on the same device.
        batch_size: Images per step, over all ranks.
        stage: "train" shuffles by epoch; other stages keep the order of the images.
        seed: Of order, noise and augmentation.
        transforms: Noise and augmentation.
        same_epoch: Repeat the first epoch's batches in every epoch, to overfit them.
        rank: This process's rank.
        world_size: Number of processes that share each batch.

    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        stage: str,
        seed: int,
        transforms: BatchTransforms = BatchTransforms(),
        same_epoch: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.stage, self.seed, self.transforms = batch_size, stage, seed, transforms
        self.same_epoch, self.rank, self.world_size = same_epoch, rank, world_size
        self.epoch = 0
        self.position = 0
        """Number of steps of the epoch that the next iteration skips."""
        # Number of batches taken from the current iteration, for `state_dict`. `position` cannot serve for this:
        # it is reset to 0 when an iteration begins.
        self._given = 0
        self._corrupted: Tensor | None = None
        self._features: Tensor | None = None
        # `bounds[i]` to `bounds[i + 1]` is batch i of the epoch's order.
        total = len(images)
        if stage == "train":
            # Every rank gets as many images, so that the mean over ranks is the mean over the batch. For that the
            # last batch drops up to world_size - 1 images; the order decides which, so they differ by epoch.
            total -= (total % batch_size) % world_size
            self.bounds = [*range(0, total, batch_size), total]
        else:
            # Batches of nearly equal size: every image is in one, and every rank has a share of each.
            count = max(1, -(-total // batch_size))
            self.bounds = [total * i // count for i in range(count + 1)]

    # Lightning looks for `batch_sampler` on every loader that has a `sampler`.
    batch_sampler = None

    @property
    def sampler(self) -> Any:
        """The loader itself, because Lightning announces each epoch to `loader.sampler.set_epoch`.

        Lightning (2.6) warns if `overfit_batches` is used with a sampler that is not sequential, but does not
        replace it in a loader without `dataset`. With `same_epoch` all epochs are equal, so a sequential sampler
        is returned to avoid the warning.
        """
        return SequentialSampler(range(len(self.images))) if self.same_epoch else self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order and noise the next iteration uses."""
        self.epoch = epoch if self.stage == "train" and not self.same_epoch else 0

    @property
    def is_constant(self) -> bool:
        """True if an image is the same in every epoch: neither corrupted nor augmented."""
        return self.transforms.corruption is None and not self.transforms.augments

    @property
    def serves_features(self) -> bool:
        """True between `serve(features)` and `serve(None)`."""
        return self._features is not None

    def serve(self, features: Tensor | None) -> None:
        """Serve `features` (N, ...), one for each image, in the place of the images; None: the images again."""
        self._features = features

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        # A generator starts running when the first batch is taken, which is after Lightning has called set_epoch.
        total, device = len(self.images), self.images.device
        if self.stage == "train":
            # Drawn on the CPU, so that a GPU trains on the same batches in the same order.
            order = torch.randperm(total, generator=keyed_generator(self.seed, "order", self.epoch)).to(device)
        else:
            order = torch.arange(total, device=device)
        # A resumed epoch continues in its order; the next one starts at 0.
        start, self.position = self.position, 0
        for step in range(start, len(self)):
            # Before the yield: Lightning never exhausts a loader that has a length.
            self._given = step + 1
            yield self._batch(order[self.bounds[step] : self.bounds[step + 1]], step)

    def state_dict(self) -> dict[str, int]:
        """Number of batches of the epoch that have been taken, for a checkpoint."""
        # 0 after the last batch: that checkpoint belongs to the end of the epoch, and the next one starts afresh.
        return {"position": self._given % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration continue after the batches that `state` says were taken."""
        self.position = state["position"]

    def _batch(self, indices: Tensor, step: int) -> Batch:
        """This rank's share of the images at `indices`, transformed."""
        # Indices and images are on one device: no transfer in the step.
        device = self.images.device
        y = self.labels.index_select(0, indices)
        if self._features is not None:
            features = self._features.index_select(0, indices)
            return self._share(Batch(features, features, y))
        # index_select takes a third of the time of `images[indices]` for 64 images on one CPU thread (torch 2.15).
        # uint8 until here, a quarter of the memory of float32; (B, C, H, W) in [0, 1] from here on.
        clean = self.images.index_select(0, indices).to(torch.float32).div_(255)

        def generator(what: str) -> torch.Generator:
            # One stream for each use: adding one transform leaves the numbers of the others as they were.
            return keyed_generator(self.seed, what, self.stage, self.epoch, step, device=device)

        # Geometric transforms come first and apply to the target too: an autoencoder should remove noise, and not
        # undo a rotation.
        if self.transforms.flip:
            clean = flip(clean, generator("flip"))
        if self.transforms.rotation:
            clean = rotate(clean, self.transforms.rotation, generator("rotation"))
        if self.transforms.shift:
            clean = shift(clean, self.transforms.shift, generator("shift"))
        # Without corruption, `x` and `clean` are the same tensor, which models check to save work.
        x = clean
        if self.transforms.fixed_noise:
            x = self._corrupted_once().index_select(0, indices)
        elif self.transforms.corruption is not None:
            x = CORRUPTIONS[self.transforms.corruption](clean, self.transforms.noise, generator("noise"))
        return self._share(Batch(x, clean, y))

    def _share(self, batch: Batch) -> Batch:
        """This rank's images of a batch: every `world_size`-th one."""
        if self.world_size == 1:
            return batch
        return batch.map(lambda tensor: tensor[self.rank :: self.world_size])

    def _corrupted_once(self) -> Tensor:
        """All images with their fixed noise, float32 (N, C, H, W), four times the memory of the images; cached.

        The noise is drawn in blocks, because a generator per image would cost more than the training step.
        """
        if self._corrupted is None:
            assert self.transforms.corruption is not None
            corrupt, device, blocks = CORRUPTIONS[self.transforms.corruption], self.images.device, []
            for number, block in enumerate(torch.split(self.images, NOISE_BLOCK)):
                generator = keyed_generator(self.seed, "fixed noise", self.stage, number, device=device)
                clean = block.to(torch.float32).div_(255)
                blocks.append(corrupt(clean, self.transforms.noise, generator))
            self._corrupted = torch.cat(blocks)
        return self._corrupted
