"""Every architecture: its number of parameters, which the papers give, its training, its hyperparameters."""

import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.errors import UsageError
from lit_mnist.models import (
    CNN,
    MLP,
    Autoencoder,
    BatchNormAutoencoder,
    BatchNormCNN,
    Classifier,
    ConvAutoencoder,
    DenoisingConvAutoencoder,
    DenseAutoencoder,
    FeatureClassifier,
    LitModel,
    StackedAutoencoder,
    StackedClassifier,
    TwoPhaseClassifier,
)

Case = tuple[type[LitModel], dict[str, Any], int]  # class, arguments, number of parameters


def _dense(*sizes: int) -> int:
    """The number of weights and biases of dense layers of these sizes."""
    return sum(a * b + b for a, b in pairwise(sizes))


def _conv(kernel: int, *channels: int) -> int:
    """The number of weights and biases of convolutions with these channels."""
    return sum(a * b * kernel**2 + b for a, b in pairwise(channels))


# Panagakis: each convolution but the last one has batch norm, with a weight and a bias per channel.
BATCH_NORM_ENCODER = _conv(3, 1, 32, 32, 64, 128, 256) + 2 * (32 + 32 + 64 + 128 + 256)
BATCH_NORM_DECODER = _conv(3, 256, 128, 64, 32, 32, 1) + 2 * (128 + 64 + 32 + 32)
SMALL: list[Case] = [
    (DenseAutoencoder, {}, _dense(784, 98, 784)),
    (DenseAutoencoder, {"hidden_sizes": [256, 64]}, _dense(784, 256, 64, 256, 784)),
    (DenseAutoencoder, {"loss": "cross_entropy"}, _dense(784, 98, 784)),
    (DenseAutoencoder, {"loss": "cross_entropy", "reduction": "sum"}, _dense(784, 98, 784)),
    (StackedAutoencoder, {"hidden_sizes": [64]}, _dense(784, 64, 784)),
    (ConvAutoencoder, {"loss": "cross_entropy"}, _conv(3, 1, 16, 32, 2, 32, 16, 1)),
    (DenoisingConvAutoencoder, {"channels": 8, "loss": "cross_entropy"}, _conv(3, 1, 8, 8, 8, 8, 8, 1)),
    (BatchNormAutoencoder, {"blocks": [[4], [6]]}, _conv(3, 1, 4, 6, 4, 1) + 2 * (4 + 6 + 4)),
    (CNN, {}, _conv(5, 1, 16, 52) + _dense(52 * 49, 10)),
    (MLP, {"dropout": 0.2}, _dense(784, 300, 10)),
    (
        BatchNormCNN,
        {"channels": [4, 6], "hidden_sizes": [32]},
        _conv(5, 1, 4) + _conv(3, 4, 6) + 2 * (4 + 6) + _dense(150, 32, 10),
    ),
    (FeatureClassifier, {"hidden_sizes": [64], "freeze": False}, _dense(784, 98, 64, 10)),
    (
        TwoPhaseClassifier,
        {"encoder": "ConvAutoencoder", "frozen_epochs": 0},
        _conv(3, 1, 16, 32, 2) + _dense(98, 128, 10),
    ),
    (StackedClassifier, {"hidden_sizes": [64], "encoder_lr": 3e-3}, _dense(784, 64, 10)),
]
PAPERS: list[Case] = [
    (FeatureClassifier, {}, _dense(784, 98) + _dense(98, 1000, 1000, 10)),  # Zhang
    (MLP, {}, 238_510),  # Dutta: 784-300-10
    (BatchNormCNN, {}, 688_106),  # Dutta's own count
    (DenoisingConvAutoencoder, {}, _conv(3, 1, 32, 32, 32, 32, 32, 1)),  # Narayanam
    (BatchNormAutoencoder, {}, BATCH_NORM_ENCODER + BATCH_NORM_DECODER),  # Panagakis
    (TwoPhaseClassifier, {}, BATCH_NORM_ENCODER + _dense(256 * 7 * 7, 128, 10)),  # Panagakis
    (DenseAutoencoder, {"hidden_sizes": [256]}, _dense(784, 256, 784)),  # Yaramsetty
    (StackedAutoencoder, {"hidden_sizes": [500, 200, 100]}, _dense(784, 500, 200, 100, 200, 500, 784)),
    (StackedClassifier, {}, _dense(784, 500, 200, 100, 10)),
]
each_model = pytest.mark.parametrize(("model_class", "arguments", "size"), SMALL)


def test_this_file_covers_every_architecture() -> None:
    bases = (Autoencoder, Classifier, *Classifier.__subclasses__())
    ours = {cls for base in bases for cls in base.__subclasses__() if cls.__module__.startswith("lit_mnist.")}
    leaves = ours - {base for cls in ours for base in cls.__mro__[1:]}
    assert leaves == {cls for cls, *_ in SMALL}


@pytest.mark.parametrize(("model_class", "arguments", "size"), SMALL + PAPERS)
def test_number_of_parameters_and_output_shape(
    model_class: type[LitModel], arguments: dict[str, Any], size: int
) -> None:
    model = model_class(**arguments)
    assert sum(p.numel() for p in model.parameters()) == size
    prediction = model.predict_step(torch.rand(3, 1, 28, 28), 0)
    expected = (3, 1, 28, 28) if isinstance(model, Autoencoder) else (3, 10)
    assert prediction.shape == expected
    assert prediction.min() >= 0 and prediction.max() <= 1


@pytest.mark.parametrize(
    ("model", "code", "statistics"),
    [
        (DenseAutoencoder(), (98,), 0),  # Zhang
        (BatchNormCNN(), None, 128),  # Dutta
        (ConvAutoencoder(), (2, 7, 7), 0),  # 98 numbers, as in Zhang
        (DenoisingConvAutoencoder(), (32, 7, 7), 0),  # Narayanam
        (BatchNormAutoencoder(), (256, 7, 7), 2 * (32 + 32 + 64 + 128 + 256 + 128 + 64 + 32 + 32)),  # Panagakis
        (StackedAutoencoder(hidden_sizes=[500, 200, 100]), (100,), 0),  # Yaramsetty
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LitModel) else "",
)
def test_codes_and_running_statistics(model: LitModel, code: tuple[int, ...] | None, statistics: int) -> None:
    assert sum(value.numel() for name, value in model.named_buffers() if "running_" in name) == statistics
    if isinstance(model, Autoencoder):
        assert model.encode(torch.rand(3, 1, 28, 28)).shape[1:] == code


def test_the_layers_of_duttas_network_have_the_papers_order() -> None:
    block = ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d", "Dropout"]
    dense = ["Linear", "ReLU", "Dropout"]
    names = [type(layer).__name__ for layer in BatchNormCNN().network]
    assert names == [*block, *block, "Flatten", *dense, *dense, "Linear"]


def test_the_batch_norm_autoencoders_decoder_mirrors_its_encoder() -> None:
    model = BatchNormAutoencoder()
    mirrored_type = {"MaxPool2d": "Upsample", "Upsample": "MaxPool2d"}

    def layers(module: nn.Module) -> list[tuple[int, int] | str]:
        kept = [layer for layer in module.children() if not isinstance(layer, nn.ReLU | nn.BatchNorm2d)]
        return [
            (layer.in_channels, layer.out_channels) if isinstance(layer, nn.Conv2d) else type(layer).__name__
            for layer in kept
        ]

    mirrored_encoder = [
        mirrored_type[x] if isinstance(x, str) else x[::-1] for x in reversed(layers(model.encoder))
    ]
    assert layers(model.decoder) == mirrored_encoder


def test_the_loss_summed_over_pixels_is_the_mean_times_their_number() -> None:
    mean, total = (DenseAutoencoder(loss="cross_entropy", reduction=name) for name in ("mean", "sum"))
    total.load_state_dict(mean.state_dict())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    images = MiniMNISTDataModule(val_size=50)
    shown = [Trainer(accelerator="cpu", **quiet).validate(m, images, verbose=False)[0] for m in (mean, total)]
    assert shown[1]["val/loss"] == pytest.approx(784 * shown[0]["val/loss"], rel=1e-5)
    assert shown[1]["val/mse"] == pytest.approx(shown[0]["val/mse"])


@each_model
def test_learns_from_real_images_in_a_plain_trainer(
    model_class: type[LitModel], arguments: dict[str, Any], size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = model_class(lr=3e-3, **arguments)
    data = MiniMNISTDataModule(train_per_class=50)
    trainer = Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    before = trainer.validate(model, data, verbose=False)[0]["val/loss"]
    trainer.fit(model, data)
    assert trainer.callback_metrics["val/loss"] < 0.8 * before
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    again = model_class.load_from_checkpoint(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_of_version_0_1_is_loaded(tmp_path: Path) -> None:
    name = "./mlruns/runs/55086c37e514446489c5885ca99ffd7a/checkpoints/best.ckpt"
    with tarfile.open(Path(__file__).parents[1] / "stored" / "v0.1.tar.xz") as archive:
        archive.extract(name, tmp_path, filter="data")
    with (tmp_path / name).open("rb") as file:
        models = [CNN.load_from_checkpoint(tmp_path / name), CNN.load_from_checkpoint(file, lr=0.5)]
    saved = torch.load(tmp_path / name, weights_only=True)["state_dict"]
    for model, lr in zip(models, (0.001, 0.5), strict=True):
        assert (model.hparams["image_shape"], model.hparams["lr"]) == ([1, 28, 28], lr)
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "kind", "group"),
    [
        ({"optimizer": "adam", "lr": 0.1}, torch.optim.Adam, {"lr": 0.1}),
        ({"optimizer": "sgd", "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
        ({"optimizer": "rmsprop", "weight_decay": 0.1}, torch.optim.RMSprop, {"weight_decay": 0.1}),
    ],
)
def test_the_optimizer_is_the_one_that_the_hyperparameters_name(
    arguments: dict[str, Any], kind: type, group: dict[str, float]
) -> None:
    optimizer = DenseAutoencoder(**arguments).configure_optimizers()
    assert type(optimizer) is kind
    assert group.items() <= optimizer.param_groups[0].items()


def test_the_inverse_time_schedule_is_the_decay_of_keras() -> None:
    model = DenseAutoencoder(hidden_sizes=[4], lr=0.1, lr_schedule="inverse_time", lr_decay=0.5)
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, MiniMNISTDataModule())
    # After three steps: 0.1 / (1 + 0.5 * 3).
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("model_class", "arguments", "message"),
    [
        (CNN, {"optimizer": "adam", "momentum": 0.9}, "--model.momentum 0.9 has no effect on adam"),
        (CNN, {"optimizer": "adamw"}, "--model.optimizer adamw must be one of sgd, adam, rmsprop"),
        (CNN, {"lr_schedule": "step"}, "--model.lr_schedule step must be one of constant, linear"),
        (CNN, {"lr_schedule": "inverse_time"}, "needs a value above 0"),
        (CNN, {"lr_decay": 1e-4}, "--model.lr_decay 0.0001 and --model.lr_schedule constant"),
        (DenseAutoencoder, {"loss": "l1"}, "--model.loss l1 must be one of mse, cross_entropy"),
        (DenseAutoencoder, {"reduction": "none"}, "--model.reduction none must be one of mean, sum"),
        (CNN, {"lr": 0.0}, "--model.lr 0.0 must be above 0"),
        (CNN, {"optimizer": "sgd", "momentum": 1.0}, "--model.momentum 1.0 must lie in"),
        (CNN, {"kernel_size": 4}, "--model.kernel_size 4 must be odd"),
        (CNN, {"channels": [1] * 5}, "cannot be halved that often"),
        (DenseAutoencoder, {"hidden_sizes": []}, r"--model.hidden_sizes \[\]"),
        (DenseAutoencoder, {"hidden_activation": "rellu"}, "activation 'rellu' is none of sigmoid, relu"),
        (
            DenseAutoencoder,
            {"loss": "cross_entropy", "output_activation": "identity"},
            "needs --model.output_activation sigmoid",
        ),
        (MLP, {"hidden_sizes": [0]}, r"--model.hidden_sizes \[0\]"),
        (MLP, {"dropout": 1.0}, "--model.dropout 1.0 must lie in"),
        (BatchNormCNN, {"conv_dropout": -0.1}, "--model.conv_dropout -0.1 must lie in"),
        (BatchNormCNN, {"channels": [8]}, "must have the same length"),
        (
            BatchNormCNN,
            {"channels": [8] * 4, "kernel_sizes": [3] * 4},
            r"\[3, 3, 3, 3\] are too large for images of 28×28",
        ),
        (ConvAutoencoder, {"channels": [4, 4, 4]}, "28×28 pixels must be divisible by 8"),
        (ConvAutoencoder, {"code_channels": 0}, "--model.code_channels 0 must be at least 1"),
        (DenoisingConvAutoencoder, {"image_shape": [1, 30, 28]}, "30×28 pixels must be divisible by 4"),
        (DenoisingConvAutoencoder, {"channels": 0}, "--model.channels 0 must be at least 1"),
        (BatchNormAutoencoder, {"blocks": [[8], []]}, r"--model.blocks \[\[8\], \[\]\] must hold"),
        (BatchNormAutoencoder, {"blocks": [[4]] * 4}, "must be divisible by 8"),
        (StackedAutoencoder, {"hidden_sizes": []}, r"--model.hidden_sizes \[\]"),
        (StackedAutoencoder, {"below_checkpoint": "x"}, "--model.below_checkpoint has no effect"),
        (
            StackedAutoencoder,
            {"hidden_sizes": [8, 8], "hidden_activation": "relu", "loss": "cross_entropy"},
            "take --model.hidden_activation sigmoid",
        ),
        (StackedClassifier, {"encoder_lr": -1.0}, "--model.encoder_lr -1.0 must not be negative"),
        (TwoPhaseClassifier, {"frozen_epochs": -1}, "--model.frozen_epochs -1 must not be negative"),
        (TwoPhaseClassifier, {"patience": 0}, "--model.patience 0 must be at least 1"),
    ],
)
def test_impossible_hyperparameters_are_refused(
    model_class: type[LitModel], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        model_class(**arguments)


def test_the_dense_autoencoder_mirrors_its_encoder() -> None:
    model = DenseAutoencoder(hidden_sizes=[256, 64], image_shape=[3, 8, 8])
    sizes = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [(192, 256), (256, 64), (64, 256), (256, 192)]
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_image_shape_and_number_of_classes_are_arguments() -> None:
    assert CNN(num_classes=3, image_shape=[3, 16, 20])(torch.rand(2, 3, 16, 20)).shape == (2, 3)
