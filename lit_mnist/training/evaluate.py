"""`lit-mnist validate`, `test` and `predict`: what a run's checkpoint is worth."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from lit_mnist.data.image_files import read_image
from lit_mnist.errors import UserError
from lit_mnist.models import Classifier
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.folder import CONFIG, upgrade_config
from lit_mnist.tracking.queries.lookup import fetched
from lit_mnist.tracking.run import Run, find_run, open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.checkpoints.files import BEST, LAST, load_weights
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.lightning.signals import StopEvaluation
from lit_mnist.training.report import Result, show, test_figures

if TYPE_CHECKING:
    from mlflow import MlflowClient

ONE_DEVICE = ("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto")
"""Evaluation takes a moment: whatever a run was trained on, one device does unless more are asked for."""


def evaluate(
    verb: str, run_id: str, checkpoint: str, overrides: list[str], watch: SignalWatch | None = None
) -> Result:
    """`validate` or `test` a run's checkpoint; what `test` measures is logged to the run."""
    noted = SignalWatch() if watch is None else nullcontext(watch)
    with noted as watch, _existing_run(run_id, overrides) as (run, cli):
        with found_checkpoint(run, checkpoint) as path:
            loaded = load_weights(cli.model, path)
        trainer = cli.make_trainer(logger=False, callbacks=[StopEvaluation(watch)], enable_checkpointing=False)
        start = time.perf_counter()
        measured = getattr(trainer, verb)(cli.model, datamodule=cli.datamodule, verbose=False)[0]
        took = time.perf_counter() - start
        metrics = {name: value for name, value in measured.items() if "/" in name}
        drawn = []
        if verb == "test" and trainer.is_global_zero:
            known = run.data().data.metrics
            news = {name: value for name, value in metrics.items() if known.get(name) != value}
            run.log_metrics(news, loaded["global_step"])
            drawn = test_figures(run, cli.model, cli.datamodule)
        result = Result(run.id, metrics, took, drawn)
    if trainer.is_global_zero:
        show(result, verb)
    return result


def predict(run_id: str, checkpoint: str, images: list[Path], out: Path, overrides: list[str]) -> None:
    """Print each image's label with its probability, or write its reconstruction into `out`."""
    with _existing_run(run_id, overrides) as (run, cli), found_checkpoint(run, checkpoint) as path:
        load_weights(cli.model, path)
    shape = cli.model.hparams.get("image_shape", cli.datamodule.image_shape)
    read = [read_image(path, shape) for path in images]
    batch = torch.from_numpy(np.stack([image for image, _ in read])).float().div(255)
    with torch.inference_mode():
        predictions = cli.model.eval().predict_step(batch, 0)
    for path, (_, notes), prediction in zip(images, read, predictions, strict=True):
        remark = f"  ({', '.join(notes)})" if notes else ""
        if isinstance(cli.model, Classifier):
            label = int(prediction.argmax())
            name = cli.datamodule.class_names[label]
            print(f"{path}: {name}  {float(prediction[label]):.1%}{remark}")
        else:
            print(f"{path}: {_write(prediction, out, path)}{remark}")


@contextmanager
def found_checkpoint(run: Run, name: str) -> Iterator[Path]:
    """The run's `best` or `last` checkpoint, in its folder or among its artifacts, or the file `name`.

    Raises:
        UserError: the run has none.
    """
    if name not in ("best", "last"):
        yield Path(name)
        return
    logged = {Path(item.path).name for item in run.client.list_artifacts(run.id, "checkpoints")}
    for file in (BEST, LAST) if name == "best" else (LAST,):
        if file == LAST and name == "best":
            print(f"run {run.id} was never val_metric_names: taking its last checkpoint")
        if (path := run.folder / "checkpoints" / file).exists():
            yield path
            return
        if file in logged:
            with fetched(run.client, run.id, f"checkpoints/{file}") as path:
                yield path
            return
    raise UserError(f"run {run.id} has no checkpoint, neither in {run.folder} nor among its artifacts")


@contextmanager
def _existing_run(run_id: str, overrides: list[str]) -> Iterator[tuple[Run, LitCLI]]:
    """The run and, from its configuration and `overrides`, its model and data."""
    store = find_store()
    found = find_run(connect(store), store, run_id).info.run_id
    with open_run("", run_id=found) as run:
        yield run, rebuild(run.client, run.id, [*ONE_DEVICE, *overrides])


def rebuild(client: "MlflowClient", run_id: str, overrides: Sequence[str] = ()) -> LitCLI:
    """What a run trained, and with which data, by its configuration and the flags `overrides`.

    Raises:
        UserError: it has none.

    """
    with ExitStack() as files:
        try:
            config = upgrade_config(files.enter_context(fetched(client, run_id, CONFIG)))
        except Exception:  # each kind of artifact store has its own
            raise UserError(f"run {run_id} has no {CONFIG}: `lit-mnist fit` did not make it") from None
        return LitCLI(["--config", str(config), *overrides])


def _write(image: torch.Tensor, out: Path, source: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{source.stem}_reconstructed.png"
    drawn = image.permute(1, 2, 0) if len(image) == 3 else image.mean(dim=0)
    Image.fromarray(drawn.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()).save(path)
    return path
