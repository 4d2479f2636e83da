"""Trials per hour: Optuna's own Lightning example, as its documentation shows it, against `lit-mnist sweep`.

Both evaluate the same 20 points on Fashion-MNIST: one to three hidden layers of 4 to 128 neurons with dropout,
Adam, batches of 128, 10 % of the images for validation, 2 epochs. The example runs one trial after the other, with
torchvision's dataset, a DataLoader and a callback that reports to Optuna. `lit-mnist sweep` runs with one worker
and with two; its times include start-up and figures.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, random_split

from lit_mnist.errors import UserError
from lit_mnist.sweeps.study.storage import open_storage, open_study

SPEC = Path(__file__).parents[1] / "sweeps" / "optuna_example.yaml"
BATCH, CLASSES, EPOCHS = 128, 10, 2


class Net(nn.Module):
    """The network of the example."""

    def __init__(self, dropout: float, sizes: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 28 * 28
        for size in sizes:
            layers += [nn.Linear(inputs, size), nn.ReLU(), nn.Dropout(dropout)]
            inputs = size
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, CLASSES))

    def forward(self, data: Tensor) -> Tensor:
        return F.log_softmax(self.layers(data), dim=1)


class LightningNet(LightningModule):
    def __init__(self, dropout: float, sizes: list[int]) -> None:
        super().__init__()
        self.model = Net(dropout, sizes)

    def forward(self, data: Tensor) -> Tensor:
        return self.model(data.view(-1, 28 * 28))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        data, target = batch
        return F.nll_loss(self(data), target)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        data, target = batch
        accuracy = self(data).argmax(dim=1).eq(target).float().mean()
        self.log("val_acc", accuracy)
        self.log("hp_metric", accuracy, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters())


class FashionMNISTData(LightningDataModule):
    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def setup(self, stage: str | None = None) -> None:
        from torchvision.datasets import FashionMNIST
        from torchvision.transforms import ToTensor

        full = FashionMNIST(self.root, train=True, transform=ToTensor())
        self.train, self.val = random_split(full, [len(full) - len(full) // 10, len(full) // 10])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=BATCH, shuffle=True, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=BATCH, shuffle=False, pin_memory=torch.cuda.is_available())


class Report(Callback):
    """Works like the pruning callback of optuna-integration."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trial.report(float(trainer.callback_metrics["val_acc"]), trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def objective(trial: optuna.Trial, root: str) -> float:
    layers = trial.suggest_int("n_layers", 1, 3)
    dropout = trial.suggest_float("dropout", 0.2, 0.5)
    sizes = [trial.suggest_int(f"n_units_l{i}", 4, 128, log=True) for i in range(layers)]
    trainer = Trainer(logger=True, limit_val_batches=1.0, enable_checkpointing=False, max_epochs=EPOCHS,
                      accelerator="auto", devices=1, callbacks=[Report(trial)], enable_progress_bar=False,
                      enable_model_summary=False)  # fmt: skip
    trainer.logger.log_hyperparams({"n_layers": layers, "dropout": dropout, "output_dims": sizes})
    trainer.fit(LightningNet(dropout, sizes), datamodule=FashionMNISTData(root))
    return float(trainer.callback_metrics["val_acc"])


def example(root: str, points: list[dict[str, Any]]) -> float:
    """Seconds of the example's study at the given points."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0),
                                pruner=optuna.pruners.NopPruner())  # fmt: skip
    for point in points:
        sizes = point["model.hidden_sizes"]
        units = {f"n_units_l{i}": size for i, size in enumerate(sizes)}
        study.enqueue_trial({"n_layers": len(sizes), "dropout": point["model.dropout"], **units})
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        start = time.perf_counter()
        study.optimize(lambda trial: objective(trial, root), n_trials=len(points))
        return time.perf_counter() - start


@dataclass
class SweepTimes:
    """Times of one sweep."""

    seconds: float
    """From the start of the command to its end."""
    outside: float
    """Share of the workers' time that was spent outside trials."""
    between: float
    """The same without start-up and figures: from the start of the first trial to the end of the last one."""
    points: list[dict[str, Any]]


def run_sweep(root: str, trials: int, workers: int) -> SweepTimes:
    """Run a sweep in an empty project."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").touch()
        environment = {**os.environ, "LIT_MNIST_DATA": root}
        for name in ("MLFLOW_TRACKING_URI", "LIT_MNIST_STORAGE"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "lit_mnist.cli", "sweep", str(SPEC), "--trials", str(trials),
                   "--workers", str(workers)]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        took = time.perf_counter() - start
        if done.returncode:
            raise UserError(done.stderr or done.stdout)
        finished = open_study(open_storage(str(Path(folder) / "mlruns" / "sweeps.journal")), SPEC.stem).trials
    inside = sum(trial.user_attrs["seconds"] for trial in finished)
    span = max(trial.datetime_complete for trial in finished) - min(trial.datetime_start for trial in finished)
    return SweepTimes(took, 1 - inside / (took * workers), 1 - inside / (span.total_seconds() * workers),
                 [trial.user_attrs["point"] for trial in finished])  # fmt: skip


def bench_sweeps(root: str, trials: int = 20, repeats: int = 1) -> None:
    """Print trials per hour of all three, and their ratios: medians over `repeats` turns."""
    turns = []
    for _ in range(repeats):
        one, two = run_sweep(root, trials, 1), run_sweep(root, trials, 2)
        turns.append((example(root, one.points), one, two))
    example_s = [turn[0] for turn in turns]
    one_s, two_s = ([turn[i].seconds for turn in turns] for i in (1, 2))
    print(f"{trials} trials of Optuna's Lightning example, {EPOCHS} epochs each, trials per hour: the example"
          f" {_rate(trials, example_s):,.0f}, lit-mnist sweep {_rate(trials, one_s):,.0f} with one worker,"
          f" {_rate(trials, two_s):,.0f} with two")  # fmt: skip
    print(f"  one worker / example {_ratio(example_s, one_s):.2f}   two / example {_ratio(example_s, two_s):.2f}"
          f"   two / one {_ratio(one_s, two_s):.2f}")  # fmt: skip
    for workers in (1, 2):
        outside, between = (statistics.median(getattr(turn[workers], name) for turn in turns)
                            for name in ("outside", "between"))  # fmt: skip
        print(f"  time outside trials with {workers} worker(s): {outside:.1%},"
              f" without start-up and figures {between:.1%}", flush=True)  # fmt: skip


def _rate(trials: int, seconds: list[float]) -> float:
    return trials / statistics.median(seconds) * 3600


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(above, below, strict=True))
