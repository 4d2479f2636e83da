"""What holds for every architecture, and the papers' own figures for each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.errors import UsageError
from lit_mnist.models import CNN, Autoencoder, DenseAutoencoder, LitModel

ARCHITECTURES: list[tuple[type[LitModel], dict[str, Any], int]] = [
    (DenseAutoencoder, {}, 784 * 98 + 98 + 98 * 784 + 784),
    (DenseAutoencoder, {"hidden_sizes": [256, 64]}, 2 * (784 * 256 + 256 * 64) + 256 + 64 + 256 + 784),
    (DenseAutoencoder, {"loss": "cross_entropy"}, 784 * 98 + 98 + 98 * 784 + 784),
    (CNN, {}, 25 * 16 + 16 + 25 * 16 * 52 + 52 + 52 * 49 * 10 + 10),
]
each = pytest.mark.parametrize(("model_class", "arguments", "size"), ARCHITECTURES)


@each
def test_parameters_and_shapes(model_class: type[LitModel], arguments: dict[str, Any], size: int) -> None:
    model = model_class(**arguments)
    assert sum(p.numel() for p in model.parameters()) == size
    prediction = model.predict_step(torch.rand(3, 1, 28, 28), 0)
    expected = (3, 1, 28, 28) if isinstance(model, Autoencoder) else (3, 10)
    assert prediction.shape == expected
    assert prediction.min() >= 0 and prediction.max() <= 1


@each
def test_learns_from_real_pictures_in_a_plain_trainer(
    model_class: type[LitModel], arguments: dict[str, Any], size: int, tmp_path: Path
) -> None:
    model = model_class(lr=3e-3, **arguments)
    data = MiniMNISTDataModule(train_per_class=50)
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    before = trainer.validate(model, data, verbose=False)[0]["val/loss"]
    trainer.fit(model, data)
    assert trainer.callback_metrics["val/loss"] < 0.8 * before
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    again = model_class.load_from_checkpoint(checkpoint, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "kind", "group"),
    [
        ({"optimizer": "adam", "lr": 0.1}, torch.optim.Adam, {"lr": 0.1}),
        ({"optimizer": "sgd", "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
        ({"optimizer": "rmsprop", "weight_decay": 0.1}, torch.optim.RMSprop, {"weight_decay": 0.1}),
    ],
)
def test_the_optimizer_is_the_one_asked_for(
    arguments: dict[str, Any], kind: type, group: dict[str, float]
) -> None:
    optimizer = DenseAutoencoder(**arguments).configure_optimizers()
    assert type(optimizer) is kind
    assert group.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize(
    ("model_class", "arguments", "message"),
    [
        (CNN, {"optimizer": "adam", "momentum": 0.9}, "--model.momentum 0.9 has no effect on adam"),
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
    ],
)
def test_impossible_hyperparameters_are_refused(
    model_class: type[LitModel], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        model_class(**arguments)


def test_the_dense_autoencoder_mirrors_its_encoder() -> None:
    model = DenseAutoencoder(hidden_sizes=[256, 64], picture_shape=[3, 8, 8])
    sizes = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [(192, 256), (256, 64), (64, 256), (256, 192)]
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_classes_and_picture_size_are_arguments_alone() -> None:
    assert CNN(num_classes=3, picture_shape=[3, 16, 20])(torch.rand(2, 3, 16, 20)).shape == (2, 3)
