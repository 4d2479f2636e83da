"""The fast training step gives the same weights as Lightning's, and is not used where it would skip something."""

import copy
from typing import Any

import lightning
import pytest
import torch
from conftest import MINI
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_mnist.models import MLP
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.lightning.fast_step import FastOptimization, QuietProfiler, use_fast_step

SHORT = [*MINI, "--data.train_size", "null", "--data.train_per_class", "20", "--data.val_size", "50"]
CNN = ["--config", "zhang/cnn", *SHORT, "--model.channels", "[4,8]", "--model.lr", "0.01",
       "--seed_everything", "7", "--trainer.max_epochs", "2"]  # fmt: skip
AUTOENCODER = ["--config", "zhang/autoencoder", *SHORT, "--seed_everything", "7", "--trainer.max_epochs", "2",
               "--data.corruption", "gaussian", "--data.noise", "0.3"]  # fmt: skip


Trained = tuple[Trainer, dict[str, Tensor]]
"""The Trainer and the weights after a training."""


def _fit(flags: list[str], fast: bool, callbacks: list[Callback] | None = None) -> Trained:
    cli = LitCLI(flags)
    trainer = cli.make_trainer(logger=False, enable_checkpointing=False, callbacks=callbacks or [])
    if fast:
        use_fast_step(trainer)
    trainer.fit(cli.model, datamodule=cli.datamodule)
    return trainer, cli.model.state_dict()


def _used_fast_step(trainer: Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    return isinstance(loop, FastOptimization) and loop.is_fast


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "flags",
    [
        CNN,
        AUTOENCODER,
        [*CNN, "--model.optimizer", "rmsprop"],
        *([*CNN, "--trainer.precision", precision] for precision in ("bf16-mixed", "bf16-true", "64-true")),
        [*AUTOENCODER, "--trainer.precision", "bf16-mixed"],
    ],
)
def test_the_fast_step_gives_the_weights_of_lightnings_step(flags: list[str]) -> None:
    trainer, weights = _fit(flags, fast=True)
    assert _used_fast_step(trainer)
    plain, expected = _fit(flags, fast=False)
    assert _equal(weights, expected)
    assert trainer.global_step == plain.global_step
    progress = [t.fit_loop.epoch_loop.automatic_optimization.state_dict() for t in (trainer, plain)]
    assert progress[0] == progress[1]


class CountsBackward(Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_after_backward(self, *args: object) -> None:
        self.calls += 1


@pytest.mark.parametrize(
    ("flags", "callbacks"),
    [
        (["--trainer.profiler", "simple"], []),
        (["--trainer.gradient_clip_val", "1"], []),
        (["--trainer.accumulate_grad_batches", "2"], []),
        (["--trainer.detect_anomaly", "true"], []),
        ([], [CountsBackward()]),
    ],
)
def test_the_fast_step_is_not_used_where_it_would_skip_something(
    flags: list[str], callbacks: list[Callback]
) -> None:
    trainer, _ = _fit([*CNN, "--trainer.max_epochs", "-1", "--trainer.max_steps", "2", *flags], True, callbacks)
    assert not _used_fast_step(trainer)


class Network(MLP):
    """A small network; each subclass changes one thing."""

    def __init__(self) -> None:
        super().__init__(hidden_sizes=[8], lr=0.01)


class WithCallbacks(Network):
    def configure_callbacks(self) -> list[Callback]:
        self.callback = CountsBackward()
        return [self.callback]


class ReturnsDict(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "more": torch.ones(())}


class ReturnsNone(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 2 else loss


class NeedsClosure(Network):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2)


class WithoutOptimizer(Network):
    def configure_optimizers(self) -> Any:
        return None


class WithStepHook(Network):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *args: None)
        return optimizer


class CustomOptimizer(torch.optim.SGD):
    """An optimizer from outside torch, which may need the closure that Lightning always passes."""


CustomOptimizer.__module__ = "elsewhere"


class WithCustomOptimizer(Network):
    def configure_optimizers(self) -> Any:
        return CustomOptimizer(self.parameters(), lr=0.1)


def _fit_model(model: LightningModule, fast: bool) -> Trained:
    torch.manual_seed(0)
    pairs = TensorDataset(torch.rand(24, 1, 28, 28), torch.randint(10, (24,)))
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, profiler=QuietProfiler(),
    )  # fmt: skip
    if fast:
        use_fast_step(trainer)
    trainer.fit(model, DataLoader(pairs, batch_size=6))
    return trainer, model.state_dict()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, intervals and missing optimizers
@pytest.mark.parametrize(
    ("kind", "fast"),
    [
        (Network, True),
        (WithCallbacks, False),
        (ReturnsDict, False),
        (ReturnsNone, False),
        (NeedsClosure, False),
        (WithoutOptimizer, False),
        (WithStepHook, False),
        (WithCustomOptimizer, False),
    ],
)
def test_models_that_the_fast_step_does_not_cover_use_lightnings_step(kind: type[Network], fast: bool) -> None:
    torch.manual_seed(1)
    model = kind()
    other = copy.deepcopy(model)
    trainer, weights = _fit_model(model, fast=True)
    assert _used_fast_step(trainer) == fast and trainer.fit_loop.epoch_loop.batch_progress.total.completed == 8
    plain, expected = _fit_model(other, fast=False)
    assert _equal(weights, expected) and trainer.global_step == plain.global_step
    if isinstance(model, WithCallbacks):
        assert model.callback.calls == 8


def test_an_untried_version_of_lightning_uses_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    monkeypatch.setattr(lightning, "__version__", "2.99.0")
    use_fast_step(trainer)
    assert not isinstance(trainer.fit_loop.epoch_loop.automatic_optimization, FastOptimization)
