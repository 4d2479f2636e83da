"""Data modules and their loader: splits; order, noise and rotation as functions of (seed, epoch, step)."""

from pathlib import Path

import pytest
import torch

from lit_mnist.data import Batch, BatchTransforms, InMemoryLoader, MiniMNISTDataModule, MNISTDataModule
from lit_mnist.data.datasets import MNIST
from lit_mnist.data.idx import load_arrays
from lit_mnist.data.mini import load_mini
from lit_mnist.errors import UsageError

NOISY = BatchTransforms("gaussian", 0.5, rotation=10.0, shift=2, flip=True)


def mini_loader(stage: str = "train", batch_size: int = 64, **options: object) -> InMemoryLoader:
    """A loader of 1,000 images of MiniMNIST."""
    images, labels, *_ = load_mini()
    options = {"seed": 1, "transforms": NOISY, **options}
    tensors = torch.from_numpy(images[:1000]).unsqueeze(1), torch.from_numpy(labels[:1000]).long()
    return InMemoryLoader(*tensors, batch_size, stage=stage, **options)  # type: ignore[arg-type]


def epoch(loader: InMemoryLoader, number: int) -> list[Batch]:
    """All batches of that epoch."""
    loader.set_epoch(number)
    return list(loader)


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return all(
        torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True)
    )


def test_an_epoch_does_not_depend_on_what_was_drawn_before() -> None:
    used = mini_loader()
    epoch(used, 0)
    torch.manual_seed(99)
    torch.rand(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert equal(epoch(used, 3), epoch(mini_loader(), 3))
    finally:
        torch.set_num_threads(threads)


def test_a_step_is_the_same_when_the_steps_before_it_are_skipped() -> None:
    loader = mini_loader()
    loader.load_state_dict({"position": 5})
    assert equal(epoch(loader, 2), epoch(mini_loader(), 2)[5:])


@pytest.mark.parametrize(
    "transforms", [BatchTransforms(), BatchTransforms("gaussian", 0.5), BatchTransforms(rotation=10.0)]
)
def test_another_epoch_or_seed_gives_other_batches(transforms: BatchTransforms) -> None:
    first = epoch(mini_loader(transforms=transforms), 0)
    assert not equal(first, epoch(mini_loader(transforms=transforms), 1))
    assert not equal(first, epoch(mini_loader(transforms=transforms, seed=2), 0))


@pytest.mark.parametrize(
    "transforms",
    [
        BatchTransforms("gaussian", 0.5),
        BatchTransforms(rotation=10.0),
        BatchTransforms(shift=2),
        BatchTransforms(flip=True),
    ],
)
def test_noise_and_augmentation_differ_by_step_epoch_and_seed(transforms: BatchTransforms) -> None:
    """All batches hold the same images, so that only noise and augmentation can make them differ."""

    def batch(number: int = 0, step: int = 0, seed: int = 1) -> torch.Tensor:
        loader = mini_loader(transforms=transforms, seed=seed)
        loader.set_epoch(number)
        return loader._batch(torch.arange(64), step).x

    assert torch.equal(batch(), batch())
    assert not any(torch.equal(batch(), other) for other in (batch(number=1), batch(step=1), batch(seed=2)))


@pytest.mark.parametrize("world_size", [1, 2])
def test_fixed_noise_belongs_to_the_image(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_mnist.data.loader.NOISE_BLOCK", 300)  # several blocks, the last one smaller

    def by_image(number: int, seed: int = 1, fixed: bool = True) -> dict[bytes, bytes]:
        """The corrupted image of each clean one, over all ranks."""
        transforms = BatchTransforms("gaussian", 0.5, fixed_noise=fixed)
        options = {"transforms": transforms, "seed": seed, "world_size": world_size}
        batches = [b for rank in range(world_size) for b in epoch(mini_loader(rank=rank, **options), number)]
        return {
            clean.numpy().tobytes(): x.numpy().tobytes()
            for b in batches
            for x, clean in zip(b.x, b.clean, strict=True)
        }

    first, other_seed = by_image(0), by_image(0, seed=2)
    assert len(first) == len(set(first.values())) == 1000  # no two images have the same noise
    assert by_image(3) == first
    assert all(first[image] != other_seed[image] for image in first)
    drawn_in_each_epoch = [by_image(number, fixed=False) for number in (0, 3)]
    assert all(drawn_in_each_epoch[0][image] != drawn_in_each_epoch[1][image] for image in first)


def test_evaluation_is_the_same_in_every_epoch() -> None:
    loader = mini_loader("val")
    assert equal(epoch(loader, 0), epoch(loader, 5))


@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_a_single_process(stage: str, world_size: int) -> None:
    batch_size = 48
    whole = epoch(mini_loader(stage, batch_size), 1)
    shares = [
        epoch(mini_loader(stage, batch_size, rank=rank, world_size=world_size), 1) for rank in range(world_size)
    ]
    left_out = sum(len(batch.y) for batch in whole)
    for parts, batch in zip(zip(*shares, strict=True), whole, strict=True):
        for rank, part in enumerate(parts):
            expected = batch.clean[rank::world_size][: len(part.clean)]
            assert torch.equal(part.clean, expected)
            left_out -= len(part.y)
    assert left_out == (1000 % batch_size % world_size if stage == "train" else 0)
    if stage == "train":
        assert all(len({len(part.y) for part in parts}) == 1 for parts in zip(*shares, strict=True))


@pytest.mark.parametrize("world_size", [1, 2])
def test_input_and_target_are_one_tensor_without_corruption(world_size: int) -> None:
    """A stacked autoencoder then computes the codes of its lower layers only once."""
    plain = mini_loader(transforms=BatchTransforms(rotation=10.0), world_size=world_size)
    batches = epoch(plain, 0)
    # This also holds for batches that are moved to another device.
    assert all(batch.x is batch.clean for batch in (*batches, batches[0].map(torch.Tensor.clone)))
    assert not any(batch.x is batch.clean for batch in epoch(mini_loader(world_size=world_size), 0))


def test_pixels_equal_those_of_the_files() -> None:
    images, labels, *_ = load_mini()
    batches = epoch(mini_loader("val", transforms=BatchTransforms()), 0)
    assert torch.equal(torch.cat([b.x for b in batches])[:, 0] * 255, torch.from_numpy(images[:1000]).float())
    assert torch.cat([b.y for b in batches]).tolist() == labels[:1000].tolist()
    assert all(batch.x is batch.clean for batch in batches)


def bytes_of_images(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_the_splits_are_disjoint_and_complete() -> None:
    data = MiniMNISTDataModule(val_size=0.2, seed=3)
    for stage in ("fit", "test"):
        data.setup(stage)
    assert data.train and data.val and data.test
    train, val, test = (bytes_of_images(part[0]) for part in (data.train, data.val, data.test))
    expected_train, _, expected_test, _ = load_mini()
    assert sorted(train + val) == sorted(bytes_of_images(torch.from_numpy(expected_train)))
    assert test == bytes_of_images(torch.from_numpy(expected_test))
    assert not set(test) & set(train + val)
    assert torch.bincount(data.val[1]).tolist() == [80] * 10


def test_fit_does_not_need_the_test_files(tmp_path: Path, full_data: str) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).symlink_to(Path(full_data, "MNIST", "raw", name))
    data = MNISTDataModule(root=str(tmp_path))
    data.setup("fit")
    assert data.train and data.val and data.test is None
    assert len(data.train[0]) == 54000 and len(data.val[0]) == 6000


def test_the_test_set_is_the_canonical_one(full_data: str) -> None:
    data = MNISTDataModule(root=full_data)
    data.setup("test")
    images, labels = load_arrays(MNIST, Path(full_data, "MNIST", "raw"), train=False)
    batches = list(data.test_dataloader())
    assert torch.equal(torch.cat([b.x for b in batches]) * 255, torch.from_numpy(images).float())
    assert torch.cat([b.y for b in batches]).tolist() == labels.tolist()


def test_the_seed_determines_the_split_and_classes_have_the_requested_sizes() -> None:
    def split(seed: int) -> MiniMNISTDataModule:
        data = MiniMNISTDataModule(val_size=400, train_per_class=30, test_per_class=6, seed=seed)
        data.setup("fit")
        data.setup("test")
        return data

    a, b, c = split(0), split(0), split(1)
    assert a.train and b.train and c.train and a.test
    assert torch.equal(a.train[0], b.train[0]) and not torch.equal(a.train[0], c.train[0])
    assert torch.bincount(a.train[1]).tolist() == [30] * 10 and torch.bincount(a.test[1]).tolist() == [6] * 10


def test_typical_images_are_nearer_to_their_class_mean_than_random_ones() -> None:
    def distance(choice: str) -> float:
        data = MiniMNISTDataModule(val_size=400, train_per_class=2, train_choice=choice)  # type: ignore[arg-type]
        data.setup("fit")
        assert data.train and torch.bincount(data.train[1]).tolist() == [2] * 10
        means = torch.stack([images[labels == label].mean(0) for label in range(10)])
        return float((data.train[0].float() - means[data.train[1]]).square().mean())

    everything = MiniMNISTDataModule(val_size=400)
    everything.setup("fit")
    assert everything.train
    images, labels = everything.train[0].float(), everything.train[1]
    assert distance("typical") < 0.8 * distance("random")
    assert distance("typical") == distance("typical")


def _corrupted_shares(**noise: float) -> list[float]:
    """The share of corrupted pixels in training, validation and test batches."""
    data = MiniMNISTDataModule(corruption="salt_and_pepper", **noise)
    data.setup("fit")
    data.setup("test")
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    return [float((batch.x != batch.clean).float().mean()) for batch in (next(iter(loader)) for loader in loaders)]


def test_validation_and_test_noise_can_differ_from_the_training_noise() -> None:
    train, val, test = _corrupted_shares(noise=0.1, test_noise=0.5)
    assert train < 0.2 and val < 0.2 and test > 0.5
    train, val, test = _corrupted_shares(noise=0.1, val_noise=0.5)
    assert train < 0.2 and val > 0.5 and test < 0.2
    assert _corrupted_shares(val_noise=0.5)[0] == 0
    with pytest.raises(UsageError, match=r"--data.val_noise 0.6 must lie in \[0, 0.5\]"):
        _corrupted_shares(val_noise=0.6)


def test_mini_warns_and_uses_all_images_for_a_larger_train_size() -> None:
    data = MiniMNISTDataModule(train_size=40000)
    with pytest.warns(UserWarning, match="MiniMNIST has only 3,600 images for training"):
        data.setup("fit")
    assert data.train and len(data.train[0]) == 3600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": 0.3}, r"--data.noise 0.3 has no effect without --data.corruption"),
        ({"corruption": "salt_and_pepper", "noise": 0.7}, r"--data.noise 0.7 must lie in \[0, 0.5\]"),
        ({"batch_size": 0}, "--data.batch_size 0"),
        ({"train_size": 10, "train_per_class": 1}, "take one"),
        ({"val_size": 4000}, "--data.val_size 4000"),
        ({"train_per_class": 600}, "--data.train_per_class 600: MiniMNIST's class 0 has only 360"),
        ({"train_choice": "typical"}, "--data.train_choice typical has no effect"),
        ({"rotation": -1.0}, "--data.rotation"),
        ({"shift": 28}, r"--data.shift 28 must lie in \[0, 27\] pixels"),
        ({"fixed_noise": True, "corruption": "gaussian", "noise": 0.5, "flip": True}, "cannot be .* --data.flip"),
        ({"val_size": 0.0001}, "--data.val_size 0.0001 must leave images"),
        ({"val_size": -1}, "--data.val_size -1"),
        ({"fixed_noise": True}, "--data.fixed_noise true has no effect without --data.noise"),
        (
            {"fixed_noise": True, "corruption": "gaussian", "noise": 0.5, "rotation": 9.0},
            "--data.fixed_noise true cannot be combined",
        ),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MiniMNISTDataModule(**arguments).setup("fit")  # type: ignore[arg-type]
