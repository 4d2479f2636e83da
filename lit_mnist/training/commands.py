"""`lit-mnist fit`, `validate`, `test` and `predict`."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from lit_mnist.errors import UsageError, UserError
from lit_mnist.models import Classifier
from lit_mnist.tracking.logger import MLflowTracker
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.run import Run, clean_folder, find_run, open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.tracking.terminal import print_table, seconds
from lit_mnist.training.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    checkpoint_callbacks,
    load_weights,
)
from lit_mnist.training.lean import make_lean
from lit_mnist.training.parser import LitCLI
from lit_mnist.training.progress import progress_callback
from lit_mnist.training.report import fit_figures, test_figures
from lit_mnist.training.signals import SignalWatch

ONE_DEVICE = ("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto")
"""Evaluation takes a moment: whatever a run was trained on, one device does unless more are asked for."""


@dataclass(frozen=True)
class Result:
    """What a command has to show for itself."""

    run_id: str
    metrics: dict[str, float]
    seconds: float
    figures: list[str]


def fit(arguments: list[str], callbacks: Sequence[Callback] = ()) -> Result | None:
    """Train what `arguments` describe, as one MLflow run; None on ranks other than 0.

    Args:
        arguments: Those of `lit-mnist fit`.
        callbacks: To be called beside the project's own.
    """
    with SignalWatch() as watch:
        cli = LitCLI(arguments)
        cli.datamodule.setup("fit")
        tracker = MLflowTracker()
        trainer = _fit_trainer(cli, tracker, [watch, *callbacks])
        watch.check()
        # Only now is there a run: what cannot even start leaves none behind.
        with _new_run(cli, trainer) as run:
            tracker.run = run
            result = _train(cli, run, trainer)
            watch.check()
        if run is None or result is None:
            return None
        clean_folder(run)
    _show(result, "fit")
    return result


def evaluate(verb: str, run_id: str, checkpoint: str, overrides: list[str]) -> Result:
    """`validate` or `test` a run's checkpoint; what `test` measures is logged to the run."""
    with SignalWatch() as watch, _existing_run(run_id, overrides) as (run, cli):
        loaded = load_weights(cli.model, find_checkpoint(run, checkpoint))
        trainer = cli.make_trainer(logger=False, callbacks=[watch], enable_checkpointing=False)
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
        _show(result, verb)
    return result


def predict(run_id: str, checkpoint: str, pictures: list[Path], out: Path, overrides: list[str]) -> None:
    """Print each picture's label with its probability, or write its reconstruction into `out`."""
    from lit_mnist.data.pictures import read_picture

    with _existing_run(run_id, overrides) as (run, cli):
        load_weights(cli.model, find_checkpoint(run, checkpoint))
    shape = cli.model.hparams.get("picture_shape", (1, 28, 28))
    read = [read_picture(path, (shape[1], shape[2])) for path in pictures]
    batch = torch.from_numpy(np.stack([picture for picture, _ in read])).unsqueeze(1).float().div(255)
    with torch.inference_mode():
        predictions = cli.model.eval().predict_step(batch.expand(-1, shape[0], -1, -1), 0)
    for path, (_, notes), prediction in zip(pictures, read, predictions, strict=True):
        remark = f"  ({', '.join(notes)})" if notes else ""
        if isinstance(cli.model, Classifier):
            label = int(prediction.argmax())
            name = cli.datamodule.class_names[label]
            print(f"{path}: {name}  {float(prediction[label]):.1%}{remark}")
        else:
            print(f"{path}: {_write(prediction, out, path)}{remark}")


def find_checkpoint(run: Run, name: str) -> Path:
    """The run's `best` or `last` checkpoint, in its folder or among its artifacts, or the file `name`.

    Raises:
        UserError: the run has none.

    """
    if name not in ("best", "last"):
        return Path(name)
    logged = {Path(item.path).name for item in run.client.list_artifacts(run.id, "checkpoints")}
    for file in (BEST, LAST) if name == "best" else (LAST,):
        if file == LAST and name == "best":
            print(f"run {run.id} was never validated: taking its last checkpoint")
        if (path := run.folder / "checkpoints" / file).exists():
            return path
        if file in logged:
            return Path(run.client.download_artifacts(run.id, f"checkpoints/{file}"))
    raise UserError(f"run {run.id} has no checkpoint, neither in {run.folder} nor among its artifacts")


def _fit_trainer(cli: LitCLI, tracker: MLflowTracker, callbacks: list[Callback]) -> Trainer:
    callbacks = [*callbacks, *checkpoint_callbacks(cli.model), progress_callback()]
    trainer = cli.make_trainer(logger=tracker, callbacks=callbacks, plugins=[AtomicCheckpointIO()])
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UsageError("--trainer.strategy: take ddp; forked or spawned processes cannot share a run's tracking")
    make_lean(trainer, cli.model)
    return trainer


@contextmanager
def _new_run(cli: LitCLI, trainer: Trainer) -> Iterator[Run | None]:
    """The run of this fit; None in the processes that work for rank 0's."""
    if not trainer.is_global_zero:
        yield None
        return
    names = cli.config["tracking"]
    name = names.name or _run_name(cli)
    with open_run(names.experiment, name, system_metrics=names.system_metrics) as run:
        print(f"run {run.id} in experiment {run.experiment}", flush=True)
        run.log_params(cli.params())
        run.log_text(cli.config_yaml(), "config.yaml")
        run.set_tags(device_tags(trainer.strategy.root_device.type, trainer.world_size))
        run.sender.submit(lambda: _log_provenance(run, cli))
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run.folder / "checkpoints")
        yield run


def _run_name(cli: LitCLI) -> str:
    # MLflow would make one up from the random numbers that the seed has just fixed: the same for every run.
    return f"{type(cli.model).__name__} {cli.datamodule.dataset} seed {cli.config.seed_everything}"


def _log_provenance(run: Run, cli: LitCLI) -> None:
    """Log code, packages and data: what takes a moment, and so is done beside the training."""
    versions = package_versions()
    run.set_tags({**git_state(), **version_tags(versions), "monitor": cli.model.monitor})
    run.log_text("".join(f"{name}=={version}\n" for name, version in versions.items()), "packages.txt")
    data = cli.datamodule
    run.log_dataset(data.dataset, data.digest(), data.sizes())


@contextmanager
def _existing_run(run_id: str, overrides: list[str]) -> Iterator[tuple[Run, LitCLI]]:
    """The run and, from its configuration and `overrides`, its model and data."""
    store = find_store()
    found = find_run(connect(store), store, run_id).info.run_id
    with open_run("", run_id=found) as run:
        try:
            config = run.client.download_artifacts(run.id, "config.yaml")
        except Exception:  # each kind of artifact store has its own
            raise UserError(f"run {run.id} has no config.yaml: `lit-mnist fit` did not make it") from None
        yield run, LitCLI(["--config", config, *ONE_DEVICE, *overrides])


def _train(cli: LitCLI, run: Run | None, trainer: Trainer) -> Result | None:
    start = time.perf_counter()
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule)
    finally:
        if run is not None:
            _log_checkpoints(run)
    return None if run is None else _conclude(cli, run, trainer, time.perf_counter() - start)


def _log_checkpoints(run: Run) -> None:
    for path in (run.folder / "checkpoints" / BEST, run.folder / "checkpoints" / LAST):
        if path.exists():
            run.log_file(path, "checkpoints")


def _conclude(cli: LitCLI, run: Run, trainer: Trainer, took: float) -> Result:
    """Log the best validation value, and the figures of the best checkpoint."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    metrics = {name: value for name, value in logged.items() if name.startswith("val/")} or logged
    best = trainer.checkpoint_callback
    if isinstance(best, ModelCheckpoint) and best.best_model_score is not None:
        checkpoint = load_weights(cli.model, Path(best.best_model_path))
        metrics[f"best/{best.monitor}"] = float(best.best_model_score)
        run.log_metrics({f"best/{best.monitor}": float(best.best_model_score)}, checkpoint["global_step"])
    return Result(run.id, metrics, took, fit_figures(run, cli.model, cli.datamodule))


def _show(result: Result, verb: str) -> None:
    rows = [[name, f"{value:.4f}", seconds(result.seconds)] for name, value in result.metrics.items()]
    print_table(["metric", "value", "time"], rows, f"{verb}, run {result.run_id}")
    for path in result.figures:
        print(path)


def _write(picture: torch.Tensor, out: Path, source: Path) -> Path:
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{source.stem}_reconstructed.png"
    pixels = picture.mean(dim=0).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path
