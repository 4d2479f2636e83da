"""Classifiers on encoders, and stacks of layers: which weights are loaded, frozen and trained."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.distributed import destroy_process_group

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.errors import UsageError, UserError
from lit_mnist.models import (
    Autoencoder,
    BatchNormAutoencoder,
    DenseAutoencoder,
    FeatureClassifier,
    LitModel,
    StackedAutoencoder,
    StackedClassifier,
    TwoPhaseClassifier,
)
from lit_mnist.models.common import encoder_classifier
from lit_mnist.models.common.encoder_classifier import make_autoencoder

# Lightning's warning about every network with a frozen part.
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "DenseAutoencoder": {"hidden_sizes": [32, 16]},
    "ConvAutoencoder": {"channels": [4, 8]},
    "DenoisingConvAutoencoder": {"channels": 4},
    "BatchNormAutoencoder": {"blocks": [[4], [4], [8]]},
    "StackedAutoencoder": {"hidden_sizes": [32]},
}
BATCH_NORM = {"encoder": "BatchNormAutoencoder", "encoder_args": AUTOENCODERS["BatchNormAutoencoder"]}
DENSE = {"encoder": "DenseAutoencoder", "encoder_args": AUTOENCODERS["DenseAutoencoder"]}
QUICK: dict[str, Any] = {"num_sanity_val_steps": 0, "enable_model_summary": False}
Weights = dict[str, Tensor]


def data() -> MiniMNISTDataModule:
    return MiniMNISTDataModule(train_per_class=12, val_size=200, batch_size=30)  # four steps an epoch


def trainer(**arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", **{**quiet, "max_epochs": 1, **arguments})


def weights(module: nn.Module) -> Weights:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: Weights, module: nn.Module) -> set[str]:
    """The names of the weights that differ from those of `before`."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def train_autoencoder(name: str, folder: Path, **arguments: Any) -> tuple[Autoencoder, str]:
    """Train an autoencoder for an epoch; returns it and the path of its checkpoint."""
    model = make_autoencoder(name, AUTOENCODERS[name] | arguments, (1, 28, 28))
    fitted = trainer()
    fitted.fit(model, data())
    path = folder / f"{name}.ckpt"
    fitted.save_checkpoint(path)
    return model.eval(), str(path)


@pytest.fixture(scope="module")
def batch_norm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train_autoencoder("BatchNormAutoencoder", tmp_path_factory.mktemp("batch_norm"))[1]


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train_autoencoder("StackedAutoencoder", tmp_path_factory.mktemp("stacked"))[1]


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else type(value).__module__ == "builtins"


def test_this_file_covers_every_autoencoder() -> None:
    assert {cls.__name__ for cls in Autoencoder.__subclasses__()} == set(AUTOENCODERS)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_classifier_loads_any_encoder_and_its_checkpoint_contains_it(name: str, tmp_path: Path) -> None:
    source, path = train_autoencoder(name, tmp_path)
    model = FeatureClassifier(encoder=name, encoder_args=AUTOENCODERS[name], encoder_checkpoint=path)
    images = next(iter(_loader())).x
    assert torch.allclose(model.eval().encoder(images), source.encode(images), atol=1e-6)
    fitted = trainer()
    fitted.fit(model.train(), data())
    fitted.save_checkpoint(tmp_path / "classifier.ckpt")
    Path(path).unlink()
    checkpoint = torch.load(tmp_path / "classifier.ckpt", weights_only=True)
    assert _is_plain(dict(checkpoint["hyper_parameters"]))
    again = FeatureClassifier.load_from_checkpoint(tmp_path / "classifier.ckpt")
    assert torch.allclose(again.eval()(images), model.eval()(images), atol=1e-6)


def _loader() -> Any:
    module = data()
    module.setup("fit")
    return module.val_dataloader()


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_encoder_keeps_weights_and_statistics(freeze: bool, batch_norm: str) -> None:
    model = FeatureClassifier(**BATCH_NORM, encoder_checkpoint=batch_norm, freeze=freeze, hidden_sizes=[16])
    encoder, head = weights(model.encoder), weights(model.head)
    fitted = trainer()
    fitted.fit(model, data())
    optimized = {p for group in fitted.optimizers[0].param_groups for p in group["params"]}
    assert changed(head, model.head) == set(head)
    assert changed(encoder, model.encoder) == (set() if freeze else set(encoder))
    assert optimized == set(model.head.parameters() if freeze else model.parameters())
    model.train()
    assert model.head.training and model.encoder.training is not freeze


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("encoder_lr", [0.0, 1e-3])
def test_a_learning_rate_of_0_freezes_the_stack(optimizer: str, encoder_lr: float, stacked: str) -> None:
    rates: dict[str, Any] = {"lr": 0.1, "encoder_lr": encoder_lr, "weight_decay": 0.1, "optimizer": optimizer}
    model = StackedClassifier(hidden_sizes=[32], encoder_checkpoint=stacked, **rates)
    encoder, head = weights(model.encoder), weights(model.head)
    fitted = trainer()
    fitted.fit(model, data())
    assert changed(head, model.head) == set(head)
    assert changed(encoder, model.encoder) == (set(encoder) if encoder_lr else set())
    assert [group["lr"] for group in fitted.optimizers[0].param_groups] == [0.1, encoder_lr][
        : 1 + (encoder_lr > 0)
    ]


@pytest.mark.parametrize(("epochs", "learns"), [(1, False), (2, True)])
def test_the_second_phase_unfreezes_the_encoder(epochs: int, learns: bool, batch_norm: str) -> None:
    model = TwoPhaseClassifier(**BATCH_NORM, encoder_checkpoint=batch_norm, frozen_epochs=1, hidden_sizes=[16])
    encoder, head = weights(model.encoder), weights(model.head)
    fitted = trainer(max_epochs=epochs)
    fitted.fit(model, data())
    optimized = {p for group in fitted.optimizers[0].param_groups for p in group["params"]}
    assert changed(head, model.head) == set(head)
    assert changed(encoder, model.encoder) == (set(encoder) if learns else set())
    assert optimized == set(model.parameters()) == set(model.parameter_groups()[0]["params"])


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_resumed_training_is_in_the_right_phase(epochs: int, batch_norm: str, tmp_path: Path) -> None:
    """Frozen for two of four epochs; stopped in the first phase, between the phases, or in the second phase."""
    models = [
        TwoPhaseClassifier(**BATCH_NORM, encoder_checkpoint=batch_norm, frozen_epochs=2, hidden_sizes=[])
        for _ in range(3)
    ]
    whole, first, second = models
    first.load_state_dict(whole.state_dict())
    trainer(max_epochs=4).fit(whole, data())
    stopped = trainer(max_epochs=epochs)
    stopped.fit(first, data())
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    trainer(max_epochs=4).fit(second, data(), ckpt_path=tmp_path / "stopped.ckpt")
    assert changed(weights(whole), second) == set()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("steps", [2, 6])
def test_a_training_resumed_within_an_epoch_is_in_the_right_phase(
    steps: int, batch_norm: str, tmp_path: Path
) -> None:
    """Two epochs of four steps, the first one frozen; saved in mid-epoch, and resumed for one step."""
    arguments = {**BATCH_NORM, "encoder_checkpoint": batch_norm, "frozen_epochs": 1, "hidden_sizes": []}
    path = tmp_path / "saved.ckpt"

    def save(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == steps:
            trainer.save_checkpoint(path)

    trainer(max_epochs=2, callbacks=[LambdaCallback(on_train_batch_end=save)]).fit(
        TwoPhaseClassifier(**arguments), data()
    )
    saved = torch.load(path, weights_only=True)["state_dict"]
    resumed = TwoPhaseClassifier(**arguments)
    trainer(max_epochs=-1, max_steps=steps + 1).fit(resumed, data(), ckpt_path=path)
    parts_changed = {name.partition(".")[0] for name in changed(saved, resumed)}
    assert parts_changed == ({"head"} if steps < 4 else {"head", "encoder"})


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on DDP
def test_a_ddp_strategy_that_waits_for_frozen_weights_is_refused() -> None:
    images = data()
    try:
        trainer(strategy="ddp_find_unused_parameters_true", devices=1).fit(TwoPhaseClassifier(**DENSE), images)
        strategy = trainer(strategy="ddp", devices=1)
        with pytest.raises(UsageError, match="take ddp_find_unused_parameters_true"):
            strategy.fit(TwoPhaseClassifier(**DENSE), images)
        strategy.test(TwoPhaseClassifier(**DENSE), images)
    finally:
        destroy_process_group()


def test_early_stopping_waits_for_the_second_phase() -> None:
    no_learning: dict[str, Any] = {"lr": 1e-30, "optimizer": "sgd", "frozen_epochs": 2, "patience": 1}
    model = TwoPhaseClassifier(**DENSE, **no_learning)
    fitted = trainer(max_epochs=8)
    with pytest.warns(UserWarning, match="the encoder, frozen at first, has random weights"):
        fitted.fit(model, data())
    assert fitted.current_epoch == 4  # the third epoch's loss is the best, the fourth's is not better


def test_only_the_last_layer_of_a_stack_is_trained(stacked: str) -> None:
    model = StackedAutoencoder(hidden_sizes=[32, 8], below_checkpoint=stacked, loss="cross_entropy", lr=0.1)
    below = torch.load(stacked, weights_only=True)["state_dict"]
    before = weights(model)
    assert {name for name in before if name in below and torch.equal(before[name], below[name])} == set(below)
    trainer().fit(model, data())
    assert changed(before, model) == set(before) - set(below)
    assert {name.split(".")[1] for name in changed(before, model)} == {"2"}


def test_the_loss_compares_codes_and_mse_compares_images(stacked: str) -> None:
    other: dict[str, Any] = {"hidden_activation": "tanh", "reduction": "sum"}
    model = StackedAutoencoder(hidden_sizes=[32, 8], below_checkpoint=stacked, **other)
    fitted = trainer()
    fitted.validate(model, data(), verbose=False)
    images = next(iter(_loader())).x
    with torch.no_grad():
        codes = model.encoder[:2](images)
        loss = (model.decoder[0](model.encoder[2](codes)) - codes).square().sum(1).mean()
        mse = (model(images) - images).square().mean()
    assert float(fitted.callback_metrics["val/loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(fitted.callback_metrics["val/mse"]) == pytest.approx(float(mse), rel=1e-5)


def test_a_stack_with_one_layer_is_a_dense_autoencoder() -> None:
    stack, dense = StackedAutoencoder(hidden_sizes=[32]), DenseAutoencoder(hidden_sizes=[32])
    dense.load_state_dict(dict(zip(dense.state_dict(), stack.state_dict().values(), strict=True)))
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(stack(images), dense(images))


MISSING: list[LitModel] = [
    FeatureClassifier(**DENSE, encoder_checkpoint="nowhere.ckpt"),
    StackedClassifier(hidden_sizes=[8], encoder_checkpoint="nowhere.ckpt"),
    StackedAutoencoder(hidden_sizes=[32, 8], below_checkpoint="nowhere.ckpt"),
]


@pytest.mark.parametrize("model", MISSING, ids=lambda model: type(model).__name__)
def test_a_missing_checkpoint_is_an_error_only_for_a_model_without_other_weights(model: LitModel) -> None:
    with pytest.raises(UserError, match=r"_checkpoint: there is no checkpoint nowhere\.ckpt"):
        trainer().fit(model, data())
    model.load_state_dict(model.state_dict())
    model(torch.rand(1, 1, 28, 28))


def test_the_wrong_checkpoint_is_refused(stacked: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        FeatureClassifier(encoder_checkpoint=str(tmp_path / "damaged.ckpt"))
    with pytest.raises(UserError, match=r"--model.encoder_checkpoint .* does not fit this network"):
        FeatureClassifier(**DENSE, encoder_checkpoint=stacked)
    with pytest.raises(UserError, match=r"--model.below_checkpoint .* does not fit this network"):
        StackedAutoencoder(hidden_sizes=[8, 8], below_checkpoint=stacked)
    same = tmp_path / "same.ckpt"
    torch.save({"state_dict": StackedAutoencoder(hidden_sizes=[32, 8]).state_dict()}, same)
    with pytest.raises(UserError, match=r"does not fit this network: it also has decoder\.2"):
        StackedAutoencoder(hidden_sizes=[32, 8], below_checkpoint=str(same))


def test_frozen_random_weights_are_warned_about(stacked: str) -> None:
    with pytest.warns(UserWarning, match="the frozen encoder has random weights: give --model"):
        trainer().fit(FeatureClassifier(**DENSE), data())
    with pytest.warns(UserWarning, match="the stack below the last layer has random weights"):
        trainer().fit(StackedAutoencoder(hidden_sizes=[8, 8]), data())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has random weights")
        trainer().fit(StackedAutoencoder(hidden_sizes=[32, 8], below_checkpoint=stacked), data())
        trainer().fit(FeatureClassifier(**DENSE, freeze=False), data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "Dense"}, "--model.encoder Dense: there is no such autoencoder; there are BatchNormAuto"),
        ({"encoder": "lit_mnist.models.CNN"}, "there is no such autoencoder"),
        (
            {"encoder_args": {"hidden_sizs": [3]}},
            "--model.encoder_args: DenseAutoencoder does not accept them: .*sizs",
        ),
        ({"encoder_args": {"hidden_sizes": []}}, r"--model.encoder_args: --model.hidden_sizes \[\]"),
        ({"encoder_args": {"image_shape": [3, 8, 8]}}, r"--model.image_shape is \[1, 28, 28\]"),
    ],
)
def test_an_impossible_encoder_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FeatureClassifier(**arguments)


def test_an_encoder_can_be_named_by_path_and_have_any_image_shape() -> None:
    path = f"{BatchNormAutoencoder.__module__}.BatchNormAutoencoder"
    model = FeatureClassifier(encoder=path, encoder_args={"blocks": [[4], [6]]}, image_shape=[3, 8, 12])
    assert not any(value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked"))
    assert model(torch.rand(2, 3, 8, 12)).shape == (2, 10)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_frozen_phase_on_cached_codes_ends_with_the_same_weights(
    precision: str, batch_norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three frozen epochs and one without frozen weights; codes are computed once, or in every step."""
    losses: list[list[float]] = []

    def fit(expected: int) -> TwoPhaseClassifier:
        model = TwoPhaseClassifier(**BATCH_NORM, encoder_checkpoint=batch_norm, frozen_epochs=3, hidden_sizes=[16])
        model.load_state_dict(start)
        encoded = 0

        def count(*_: Any) -> None:
            nonlocal encoded
            encoded += 1

        model.encoder.register_forward_hook(count)
        seen: list[float] = []
        note = LambdaCallback(on_validation_end=lambda t, _: seen.append(float(t.callback_metrics["val/loss"])))
        trainer(max_epochs=4, precision=precision, callbacks=[note], **QUICK).fit(model, data())
        losses.append(seen)
        assert encoded == expected
        return model

    start = TwoPhaseClassifier(**BATCH_NORM, encoder_checkpoint=batch_norm, hidden_sizes=[16]).state_dict()
    cached = fit(4 + 1 + 4 + 1)  # all images once; then an epoch of four steps and one validation batch
    monkeypatch.setattr(encoder_classifier, "_fits", lambda *_: False)
    # At the start and in each frozen epoch, also a training and a validation batch to learn the size of the codes.
    plain = fit(4 * 4 + 4 + 4 * 2)
    assert changed(weights(plain), cached) == set()
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_codes_of_augmented_training_images_are_not_cached(batch_norm: str) -> None:
    model = TwoPhaseClassifier(**BATCH_NORM, encoder_checkpoint=batch_norm, frozen_epochs=2, hidden_sizes=[])
    images = MiniMNISTDataModule(train_per_class=12, val_size=200, batch_size=30, rotation=10)
    served: list[bool] = []
    note = LambdaCallback(
        on_train_batch_end=lambda t, *_: served.append(t.train_dataloader.serves_features),
        on_validation_end=lambda t, _: served.append(t.val_dataloaders.serves_features),
    )
    trainer(max_epochs=2, callbacks=[note], **QUICK).fit(model, images)
    assert served == 2 * [False, False, False, False, True]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_cached_codes_have_the_dtype_of_the_weights(precision: str, batch_norm: str) -> None:
    model = TwoPhaseClassifier(**BATCH_NORM, encoder_checkpoint=batch_norm, frozen_epochs=2, hidden_sizes=[16])
    served: list[bool] = []
    note = LambdaCallback(on_train_batch_end=lambda t, *_: served.append(t.train_dataloader.serves_features))
    trainer(max_epochs=3, precision=precision, callbacks=[note], **QUICK).fit(model, data())
    assert served == 8 * [True] + 4 * [False]
