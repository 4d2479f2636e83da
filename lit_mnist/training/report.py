"""Results of a fit or a test: a table of metrics on the terminal, figures in the run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lit_mnist.data import Batch, ImageDataModule
from lit_mnist.models import Autoencoder, Classifier, LitModel
from lit_mnist.terminal import print_table, seconds, shorten
from lit_mnist.tracking import figures
from lit_mnist.tracking.logger import MLflowTracker
from lit_mnist.tracking.queries.metrics import without_repeats
from lit_mnist.tracking.run import Run

CURVES = ("train/loss", "train/acc", "val/loss", "val/acc")


@dataclass(frozen=True)
class Result:
    """The results of a fit, a validation or a test."""

    run_id: str
    metrics: dict[str, float]
    seconds: float
    """Duration of the training or the evaluation itself, without the figures."""
    figures: list[str]
    """Paths or addresses of the figures that were logged."""


def fit_figures(run: Run, model: LitModel, data: ImageDataModule) -> list[str]:
    """Log the loss curves, and figures of the predictions for the validation images, if there are any.

    Returns:
        Paths or addresses of the figures.

    """
    # From the journal, which has every point, even if the store has not received all of them yet.
    history = {name: points for name in CURVES if (points := run.history(name))}
    drawn = [run.log_figure(figures.loss_curves(history, run.experiment), "loss_curves")]
    return drawn + (val_figures(run, model, data) if data.sizes()["val"] else [])


def val_figures(run: Run, model: LitModel, data: ImageDataModule) -> list[str]:
    """Log figures of the predictions for the validation images; returns their locations."""
    return [
        run.log_figure(figure, f"val_{name}")
        for name, figure in model_figures(model, data, _serving_all_images(data).val_dataloader(), "validation")
    ]


def test_figures(run: Run, model: LitModel, data: ImageDataModule) -> list[str]:
    """Log figures of the predictions for the test images; returns their locations."""
    return [
        run.log_figure(figure, f"test_{name}")
        for name, figure in model_figures(model, data, _serving_all_images(data).test_dataloader(), "test")
    ]


def model_figures(
    model: LitModel, data: ImageDataModule, batches: Iterable[Batch], title: str
) -> Iterator[tuple[str, Figure]]:
    """Draw the predictions of `model` for `batches`; yields each figure with its name.

    A classifier has a confusion matrix, an autoencoder a row of reconstructions.
    """
    title = f"{type(model).__name__} on {data.dataset}, {title}"
    # The training mode need not be restored: this is called after the training.
    model.eval()
    with torch.inference_mode():
        if isinstance(model, Classifier):
            yield "confusion_matrix", _confusion(model, data, batches, title)
        if isinstance(model, Autoencoder):
            yield "reconstructions", _reconstructions(model, batches, title)


def _serving_all_images(data: ImageDataModule) -> ImageDataModule:
    """Serve all images to this process, since rank 0 alone draws figures."""
    # Not reset, since this data module is no longer used for training.
    data.full_dataset_per_rank = True
    return data


def _confusion(model: Classifier, data: ImageDataModule, batches: Iterable[Batch], title: str) -> Figure:
    # (N, C, H, W), (N,) and (N, classes) of all batches.
    parts = [(batch.x.cpu(), batch.y.cpu(), _predict(model, batch.x)) for batch in batches]
    images, labels, probabilities = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    classes = probabilities.shape[1]
    # counts[true, predicted]
    counts = np.zeros((classes, classes), dtype=np.int64)
    # `counts[labels, predictions] += 1` would count repeated pairs only once.
    np.add.at(counts, (labels, probabilities.argmax(1)), 1)
    mistakes = figures.worst_mistakes(images, labels, probabilities)
    return figures.confusion_matrix(counts, data.class_names, mistakes, title)


def _reconstructions(model: Autoencoder, batches: Iterable[Batch], title: str) -> Figure:
    batch = one_per_class(batches)
    # At most ten columns (B, C, H, W), one for each class.
    rows = {"original": batch.clean}
    if batch.x is not batch.clean and not torch.equal(batch.x, batch.clean):
        rows["corrupted"] = batch.x
    rows["reconstructed"] = _predict(model, batch.x)
    return figures.image_rows({name: row.cpu().numpy() for name, row in rows.items()}, title)


def one_per_class(batches: Iterable[Batch], columns: int = 10) -> Batch:
    """The first image of each class, in the classes' order; at most `columns`."""
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in batches:
        # Usually the first batch has every class, and no other is read.
        for i, label in enumerate(batch.y.tolist()):
            found.setdefault(label, (batch.x[i], batch.clean[i], batch.y[i]))
        if len(found) >= columns:
            break
    chosen = [found[label] for label in sorted(found)[:columns]]
    return Batch(*(torch.stack(part) for part in zip(*chosen, strict=True)))


def _predict(model: LitModel, images: Tensor) -> Tensor:
    """The model's prediction, on the CPU."""
    # With `precision: 16-true` or similar, the Trainer has converted the weights.
    prediction: Tensor = model.predict_step(images.to(model.device, next(model.parameters()).dtype), 0)
    return prediction.float().cpu()


class ReconstructionSeries(Callback):
    """Logs reconstructions of the same eight validation images over the epochs, as a series of images in MLflow.

    Args:
        tracker: The logger, whose run is the one to log to.

    """

    def __init__(self, tracker: MLflowTracker) -> None:
        self.tracker = tracker
        self._batch: Batch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log an image of the untrained network: MLflow's slider opens at step 0, which would show none."""
        validates = trainer.limit_val_batches and trainer.datamodule.sizes()["val"]  # type: ignore[attr-defined]
        if trainer.global_step == 0 and trainer.is_global_zero and validates:
            modes = {module: module.training for module in pl_module.modules()}
            pl_module.eval()
            self._log(trainer, pl_module)
            for module, is_training in modes.items():  # parts that are frozen were in eval mode before
                module.training = is_training

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log an image after each of the first ten epochs, then after every tenth, then after every hundredth."""
        number = trainer.current_epoch + 1
        if trainer.sanity_checking or not trainer.is_global_zero or number % 10 ** (len(str(number)) - 1):
            return
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the eight images, as the network in eval mode reconstructs them now."""
        if self._batch is None:
            # A loader of its own: a position in the Trainer's would be part of the next checkpoint.
            self._batch = one_per_class(trainer.datamodule.val_dataloader(), 8)  # type: ignore[attr-defined]
        assert self.tracker.run is not None and isinstance(pl_module, LitModel)
        with torch.inference_mode():
            rows = [self._batch.clean, _predict(pl_module, self._batch.x)]
        if not torch.equal(self._batch.x, self._batch.clean):
            rows.insert(1, self._batch.x)
        pixels = figures.drawable(torch.stack([row.cpu() for row in rows]).flatten(0, 1).numpy())
        height, width, *channels = pixels.shape[1:]
        grid = pixels.reshape(len(rows), -1, height, width, *channels).swapaxes(1, 2)
        strip = grid.reshape(len(rows) * height, -1, *channels)
        image = Image.fromarray((strip * 255).round().astype(np.uint8))
        # Twice as large, since MLflow's page smooths what it magnifies.
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
        self.tracker.run.log_image(image, "val reconstructions", trainer.global_step)


def show(result: Result, verb: str) -> None:
    """Print the metrics that the command `verb` measured, and the locations of its figures."""
    distinct, rows = without_repeats(result.metrics), []
    for name, value in distinct.items():
        stage = name.rpartition("/")[0]
        # An autoencoder's loss is its `mse`: one line for both.
        equal = [other for other in result.metrics if other not in distinct and other.rpartition("/")[0] == stage]
        rows.append([", ".join([name, *(equal if "/loss" in name else ())]), f"{value:.4f}"])
    print_table(["metric", "value"], rows, f"run {result.run_id}: {verb} took {seconds(result.seconds)}")
    for path in result.figures:
        print(shorten(path))
