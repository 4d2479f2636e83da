"""A trained stage: access to its run, and measurements that are made once and then stored in MLflow."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_mnist.data import Batch, ImageDataModule
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

BATCH = 1000
"""Images per forward pass."""
Codes = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class TrainedStage:
    """The finished run of a stage.

    Args:
        run_id: Id of the run.
        client: Client of the run's store.
        store: The store.
        watch: The signal watch; after a signal, measurements raise `Interrupted`.

    """

    run_id: str
    client: "MlflowClient"
    store: Store
    watch: SignalWatch

    def test_metrics(self, checkpoint: Checkpoint = "best") -> dict[str, float]:
        """The metrics of `lit-mnist test`, such as `test/acc`."""

        def test(stage: "TrainedStage") -> dict[str, float]:
            # `evaluate` prints a table of metrics, which would interrupt the progress lines of `reproduce`.
            with contextlib.redirect_stdout(io.StringIO()):
                return evaluate("test", self.run_id, checkpoint, [], self.watch).metrics

        metrics: dict[str, float] = self.cached_json(f"test.{checkpoint}", test)
        return metrics

    def cached_metric(self, name: str, compute: Callable[..., float], *arguments: Any) -> float:
        """The result of `compute(self, *arguments)`, computed once and stored as the metric `reproduce/NAME`."""
        # Stored in the measured run, so that the number is available with the run, also after `--replace`.
        name = f"reproduce/{name}"
        metrics = self.client.get_run(self.run_id).data.metrics
        if name in metrics:
            return float(metrics[name])
        self.watch.check()
        value = float(compute(self, *arguments))
        self.client.log_metric(self.run_id, name, value)
        return value

    def cached_json(self, name: str, compute: Callable[["TrainedStage"], Any]) -> Any:
        """The result of `compute(self)`, of plain types, computed once and stored as the tag `reproduce.NAME`."""
        # A tag is read together with the run, while an artifact would take another request.
        tag = f"reproduce.{name}"
        text = self.client.get_run(self.run_id).data.tags.get(tag)
        if text is None:
            self.watch.check()
            text = json.dumps(compute(self))
            self.client.set_tag(self.run_id, tag, text)
        return json.loads(text)

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Step and value of each point of `metric`, in order."""
        # Without points that were replaced by a resume with another configuration.
        return [(step, value) for _, value, _, step in stored_points(self.client, self.run_id, metric)]

    def timestamps(self, metric: str) -> list[float]:
        """The time of each point of `metric`, in seconds since the epoch, in order."""
        return sorted(at / 1000 for _, _, at, _ in stored_points(self.client, self.run_id, metric))

    def rebuild(self, *overrides: str) -> LitCLI:
        """Instantiate the untrained model and the data from the run's configuration with the flags `overrides`.

        Raises:
            UserError: the run has no configuration.

        """
        return rebuild(self.client, self.run_id, overrides)

    def model(self, checkpoint: Checkpoint = "best") -> LitModel:
        """The trained model, in evaluation mode."""
        # Created from the configuration, so that no code is loaded from a checkpoint.
        model = self.rebuild().model
        load_weights(model, stage_checkpoint(self.client, self.store, self.run_id, checkpoint))
        return model.eval()

    def data(self) -> ImageDataModule:
        """The run's data module, set up for training and testing."""
        data = self.rebuild().datamodule
        data.setup("fit")
        data.setup("test")
        return data

    def test_figures(self) -> dict[str, "Figure"]:
        """The figures for the test images: a confusion matrix, or reconstructions of an autoencoder."""
        data = self.data()
        return dict(model_figures(self.model(), data, data.test_dataloader(), "test"))


def test_split(data: ImageDataModule, count: int | None = None) -> Batch:
    """The test images, with the corruption that the data module adds; at most `count` of them."""
    # From the loader, which adds the test noise. The noise depends only on the seed, so that each call gives the
    # same.
    batches = list(data.test_dataloader())
    return Batch(*(torch.cat([batch[i] for batch in batches])[:count] for i in range(3)))


def train_split(data: ImageDataModule) -> Batch:
    """The training images without corruption or augmentation."""
    # Not from the loader, which shuffles, corrupts and rotates.
    assert data.train is not None, "setup('fit') comes first"
    images = data.train[0].float().div(255)
    return Batch(images, images, data.train[1])


def predict(model: LitModel, images: Tensor) -> Tensor:
    """An autoencoder's reconstructions (N, C, H, W), or a classifier's probabilities (N, classes)."""
    with torch.inference_mode():
        return torch.cat([model.predict_step(batch, 0) for batch in torch.split(images, BATCH)])


def encode(model: Autoencoder, images: Tensor) -> Codes:
    """The code of each image, flattened to (N, D)."""
    with torch.inference_mode():
        return torch.cat([model.encode(batch).flatten(1) for batch in torch.split(images, BATCH)]).numpy()


def mean_image_mse(stage: TrainedStage) -> float:
    """Mean squared error per pixel between the test images and the mean training image."""
    data = stage.data()
    # The mean of the training images, since that of the test images would use the test set.
    mean = train_split(data).clean.mean(0)
    return float((test_split(data).clean - mean).square().mean())
