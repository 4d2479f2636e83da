"""What the framework costs next to the arithmetic: `make bench`.

Three ways of the same training on full MNIST, in turn, several times:

  (a) a bare PyTorch loop over batches in memory, eager float32;
  (b) `lit-mnist fit` with MLflow on, as users run it;
  (c) Lightning with torchvision's MNIST, ToTensor and a DataLoader, as its documentation shows;

the price of exact resume: `lit-mnist fit` saving itself every 500 steps, against the same without any of it;
and the time from the command to the first step, against importing torch, lightning and mlflow alone;
and sweeps: see bench_sweeps.py.
Printed are medians, and medians of the ratios within each turn. Validation is left out of all three. What (b) does
otherwise than (a), it does for every user: fused optimisers, channels_last for convolutions.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_mnist.data.datasets import MNIST
from lit_mnist.data.idx import load_arrays
from lit_mnist.data.locate import find_root
from lit_mnist.errors import UserError
from lit_mnist.models import CNN
from lit_mnist.training.fit import fit

IMPORTS = "import torch, lightning.pytorch, mlflow"


class Clock(Callback):
    """Milliseconds a step from the first step's start to the end of training."""

    ms = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _wait(pl_module.device)
        self.ms = (time.perf_counter() - self._start) / trainer.global_step * 1000


class FirstStep(Callback):
    """Ends the process at its first step."""

    def on_train_batch_start(self, *args: Any) -> None:
        os._exit(0)


class Network:
    """One of the two networks, as each way of training needs it."""

    def __init__(self, config: str, model: Callable[[], nn.Module], batch_size: int, steps: int) -> None:
        self.config, self.model, self.batch_size, self.steps = config, model, batch_size, steps
        self.encodes = config.endswith("autoencoder")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), x) if self.encodes else F.cross_entropy(model(x), y)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.encodes:
            return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.99)
        return torch.optim.Adam(model.parameters(), lr=0.001)


class Documented(LightningModule):
    """(c) as Lightning's documentation shows it: a loss that is logged, batches from a DataLoader."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.model = network, network.model()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.network.loss(self.model, *batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.network.optimizer(self.model)


NETWORKS = [
    Network(
        "zhang/autoencoder",
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 98),
            nn.Sigmoid(),
            nn.Linear(98, 784),
            nn.Unflatten(1, (1, 28, 28)),
        ),
        batch_size=64,
        steps=600,
    ),
    Network("zhang/cnn", lambda: CNN().network, batch_size=50, steps=150),
]


def bare(network: Network, images: Tensor, labels: Tensor) -> float:
    """(a): milliseconds a step."""
    device = images.device
    model = network.model().to(device)
    optimizer = network.optimizer(model)
    order = torch.randperm(len(images), device=device)
    _wait(device)
    start = time.perf_counter()
    for step in range(network.steps):
        indices = order[step * network.batch_size : (step + 1) * network.batch_size]
        x = images[indices].float().div_(255)
        optimizer.zero_grad()
        network.loss(model, x, labels[indices]).backward()
        optimizer.step()
    _wait(device)
    return (time.perf_counter() - start) / network.steps * 1000


def ours(network: Network, root: str) -> float:
    """(b): milliseconds a step."""
    clock = Clock()
    flags = ["--config", network.config, "--data.root", root, "--trainer.max_steps", str(network.steps)]
    with contextlib.redirect_stdout(io.StringIO()):
        fit([*flags, "--trainer.limit_val_batches", "0"], [clock])
    return clock.ms


class NoResume(Callback):
    """Stands in for what makes a fit resumable, and does nothing."""

    folder = Path()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def saved(network: Network, root: str) -> tuple[float, float]:
    """Milliseconds a step with a checkpoint every 500 steps, and with nothing that a resume would need."""
    longer = Network(network.config, network.model, network.batch_size, steps=1000)
    with unittest.mock.patch("lit_mnist.training.fit.ExactResume", NoResume):
        without = ours(longer, root)
    return ours(longer, root), without


def documented(network: Network, root: str) -> float:
    """(c): milliseconds a step."""
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    steps = network.steps // 3
    clock = Clock()
    loader = DataLoader(MNIST(root, transform=ToTensor()), batch_size=network.batch_size, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(max_steps=steps, callbacks=[clock], default_root_dir=folder, enable_progress_bar=False,
                          enable_model_summary=False, devices=1)  # fmt: skip
        trainer.fit(Documented(network), loader)
    return clock.ms


def start_ratio(root: str) -> tuple[float, float]:
    """Seconds from the command to the first step, and those of the imports alone."""
    command = [sys.executable, "-m", "lit_mnist.cli", "fit", "--config", "zhang/autoencoder", "--data.root", root,
               "--trainer.callbacks", "bench.FirstStep"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return _seconds(command, environment), _seconds([sys.executable, "-c", IMPORTS], environment)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the framework costs next to the arithmetic.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--root", help="folder of the datasets")
    parser.add_argument("--only", choices=("steps", "sweeps"), help="one of the two parts")
    known = parser.parse_args()
    location = find_root(MNIST, known.root)
    root = str(location.folder.parent.parent.resolve())
    _quiet()
    if known.only != "sweeps":
        bench_steps(location.folder, root, known.repeats)
    if known.only != "steps":
        from bench_sweeps import bench_sweeps  # not at the top: the start of a fit with FirstStep is timed

        bench_sweeps(root)


def bench_steps(folder: Path, root: str, repeats: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = (torch.from_numpy(array).to(device) for array in load_arrays(MNIST, folder, train=True))
    labels = labels.long()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} torch threads, torch {torch.__version__}, {repeats} repeats")
    with _project():
        for network in NETWORKS:
            ways = [
                lambda n=network: bare(n, images, labels),
                lambda n=network: ours(n, root),
                lambda n=network: documented(n, root),
            ]
            a, b, c = zip(*_interleaved(ways, repeats), strict=True)
            print(f"{network.config}: (a) bare {_median(a):.2f} ms a step, (b) lit-mnist {_median(b):.2f},"
                  f" (c) Lightning with a DataLoader {_median(c):.2f}", flush=True)  # fmt: skip
            print(f"  (b)/(a) {_ratio(b, a):.2f}   (c)/(b) {_ratio(c, b):.2f}", flush=True)
            prices = [turn[0] for turn in _interleaved([lambda n=network: saved(n, root)], repeats)]
            print(f"  exact resume, a checkpoint every 500 steps: ratio {_ratio(*zip(*prices, strict=True)):.3f}",
                  flush=True)  # fmt: skip
        starts = [turn[0] for turn in _interleaved([lambda: start_ratio(root)], repeats)]
    first, imports = zip(*starts, strict=True)
    print(f"start: {_median(first):.1f} s to the first step, imports alone {_median(imports):.1f} s")
    print(f"  ratio {_ratio(first, imports):.2f}")


def _interleaved(ways: list[Callable[[], Any]], repeats: int) -> list[list[Any]]:
    """One list a turn; the first turn warms up and is not counted."""
    turns = [[way() for way in ways] for _ in range(repeats + 1)]
    return turns[1:]


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _median(values: Any) -> float:
    return statistics.median(values)


def _ratio(above: Any, below: Any) -> float:
    return statistics.median(x / y for x, y in zip(above, below, strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _project() -> Iterator[None]:
    """A project of its own, so that the user's store stays as it is."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("pyproject.toml").touch()
        yield


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"bench: {error}")
