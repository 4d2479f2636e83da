"""A finished stage, and what can be measured of it; what was measured once is read from MLflow after."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_mnist.data import ImageDataModule
from lit_mnist.models import Autoencoder, LitModel
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.journal.points import stored_points
from lit_mnist.tracking.store import Store
from lit_mnist.training.checkpoints.files import load_weights
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.evaluate import evaluate, rebuild
from lit_mnist.training.report import model_figures
from lit_mnist.training.stages import Checkpoint, stage_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

Kept = TypeVar("Kept")

ROWS = 1000
"""Images that a network is given at once."""


@dataclass(frozen=True)
class Trained:
    """A stage's finished run."""

    run_id: str
    client: "MlflowClient"
    store: Store
    watch: SignalWatch

    def tested(self, checkpoint: Checkpoint = "best") -> dict[str, float]:
        """What `lit-mnist test` measures, such as `test/acc`; the run's tags keep it."""

        def compute() -> dict[str, float]:
            with contextlib.redirect_stdout(io.StringIO()):
                return evaluate("test", self.run_id, checkpoint, [], self.watch).metrics

        return self.kept(f"test.{checkpoint}", compute)

    def once(self, name: str, compute: Callable[[], float]) -> float:
        """The number `name`, computed at the first call and a metric of the run from then on."""
        name = f"reproduce/{name}"
        known = self.client.get_run(self.run_id).data.metrics
        if name in known:
            return float(known[name])
        self.watch.check()
        value = float(compute())
        self.client.log_metric(self.run_id, name, value)
        return value

    def kept(self, name: str, compute: Callable[[], Kept]) -> Kept:
        """What `compute` gives, plain types in few bytes; a tag of the run keeps it."""
        tag = f"reproduce.{name}"
        if (known := self.client.get_run(self.run_id).data.tags.get(tag)) is None:
            self.watch.check()
            known = json.dumps(compute())
            self.client.set_tag(self.run_id, tag, known)
        value: Kept = json.loads(known)
        return value

    def times(self, metric: str) -> list[float]:
        """When each point of `metric` was logged, in seconds, in order."""
        return sorted(at / 1000 for _, _, at, _ in stored_points(self.client, self.run_id, metric))

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Step and value of every point of `metric`, in order."""
        return [(step, value) for _, value, _, step in stored_points(self.client, self.run_id, metric)]

    def settings(self, *overrides: str) -> LitCLI:
        """Model, untrained, and data of the run's configuration, with `overrides`.

        Raises:
            UserError: the run has no configuration.

        """
        return rebuild(self.client, self.run_id, overrides)

    def model(self, checkpoint: Checkpoint = "best") -> LitModel:
        """The trained network, in evaluation mode."""
        model = self.settings().model
        load_weights(model, stage_checkpoint(self.client, self.store, self.run_id, checkpoint))
        return model.eval()

    def test_figures(self) -> dict[str, "Figure"]:
        """What its kind of network makes of the test images: a confusion matrix, or reconstructions."""
        settings = self.settings()
        load_weights(settings.model, stage_checkpoint(self.client, self.store, self.run_id, "best"))
        data = settings.datamodule
        data.setup("test")
        return dict(model_figures(settings.model, data, data.test_dataloader(), "test"))

    def data(self) -> ImageDataModule:
        """The run's data, all of its splits."""
        data = self.settings().datamodule
        data.setup("fit")
        data.setup("test")
        return data


@dataclass(frozen=True)
class Split:
    """Images as they are handed to a network, as they were, and their labels."""

    x: Tensor
    clean: Tensor
    y: Tensor


def test_split(data: ImageDataModule, count: int | None = None) -> Split:
    """The test images, corrupted where the data are; at most `count` of them."""
    batches = list(data.test_dataloader())
    return Split(*(torch.cat([batch[i] for batch in batches])[:count] for i in range(3)))


def train_split(data: ImageDataModule) -> Split:
    """The training images as they lie in memory, neither corrupted nor turned."""
    assert data.train is not None, "setup('fit') comes first"
    images = data.train[0].float().div(255)
    return Split(images, images, data.train[1])


def reconstruct(model: LitModel, images: Tensor) -> Tensor:
    """The model's reconstructions of images (N, C, H, W), or a classifier's probabilities."""
    with torch.inference_mode():
        return torch.cat([model.predict_step(part, 0) for part in _parts(images)])


def codes(model: Autoencoder, images: Tensor) -> NDArray[np.float32]:
    """The code of each image, flattened: (N, numbers of a code)."""
    with torch.inference_mode():
        parts = [model.encode(part).flatten(1) for part in _parts(images)]
    return torch.cat(parts).numpy()


def one_per_class(split: Split) -> Split:
    """The first image of each class, in the classes' order."""
    first = torch.tensor([int((split.y == label).nonzero()[0]) for label in sorted(set(split.y.tolist()))])
    return Split(split.x[first], split.clean[first], split.y[first])


def _parts(images: Tensor) -> Iterator[Tensor]:
    return (images[i : i + ROWS] for i in range(0, len(images), ROWS))
