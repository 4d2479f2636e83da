"""`lit-mnist fit`: one training, one run."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from lit_mnist.errors import UsageError
from lit_mnist.tracking.logger import MLflowTracker
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.run import Run, clean_folder, open_run
from lit_mnist.training.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    best_checkpoint,
    checkpoint_callbacks,
    load_weights,
)
from lit_mnist.training.lean import make_lean
from lit_mnist.training.parser import LitCLI
from lit_mnist.training.progress import progress_callback
from lit_mnist.training.report import Result, fit_figures, show
from lit_mnist.training.signals import SignalWatch


def fit(arguments: list[str], callbacks: Sequence[Callback] = ()) -> Result | None:
    """Train what `arguments` describe, as one MLflow run; None on ranks other than 0.

    Args:
        arguments: Those of `lit-mnist fit`.
        callbacks: To be called beside the project's own.
    """
    with SignalWatch() as watch:
        cli = LitCLI(arguments)
        check_fit(cli)
        cli.datamodule.setup("fit")
        tracker = MLflowTracker()
        trainer = _fit_trainer(cli, tracker, [watch, *callbacks])
        watch.check()
        # Only now is there a run: what cannot even start leaves none behind.
        with _new_run(cli, trainer) as run:
            tracker.run = run
            result = _train(cli, run, trainer)
        if run is None or result is None:
            return None
        clean_folder(run)
    show(result, "fit")
    return result


def check_fit(cli: LitCLI) -> None:
    """Refuse a model that cannot take the data.

    Raises:
        UsageError: it has too few classes, or takes pictures of another shape.
    """
    classes, shape = len(cli.datamodule.class_names), list(cli.datamodule.picture_shape)
    model = cli.model.hparams
    if model.get("num_classes", classes) < classes:
        raise UsageError(
            f"--model.num_classes {model['num_classes']}: {cli.datamodule.dataset} has {classes} classes"
        )
    if list(model.get("picture_shape", shape)) != shape:
        raise UsageError(
            f"--model.picture_shape {list(model['picture_shape'])}: those of {cli.datamodule.dataset} are {shape}"
        )


def _fit_trainer(cli: LitCLI, tracker: MLflowTracker, callbacks: list[Callback]) -> Trainer:
    callbacks = [*callbacks, *checkpoint_callbacks(cli.model)]
    if cli.config["trainer"]["enable_progress_bar"] is not False:
        callbacks.append(progress_callback())
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


def _train(cli: LitCLI, run: Run | None, trainer: Trainer) -> Result | None:
    start = time.perf_counter()
    try:
        with _settled_heap():
            trainer.fit(cli.model, datamodule=cli.datamodule)
    except MisconfigurationException as error:
        raise UsageError(f"--trainer: {' '.join(str(error).split())}") from None
    except BaseException:
        if run is not None:
            with suppress(Exception):  # the first error is the one that counts
                _log_checkpoints(run)
        raise
    if run is None:
        return None
    took = time.perf_counter() - start
    _log_checkpoints(run)
    return _conclude(cli, run, trainer, took)


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Collect garbage, but do not look for it among the million objects that start-up has made."""
    gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()


def _log_checkpoints(run: Run) -> None:
    for path in (run.folder / "checkpoints" / BEST, run.folder / "checkpoints" / LAST):
        if path.exists():
            run.log_file(path, "checkpoints")


def _conclude(cli: LitCLI, run: Run, trainer: Trainer, took: float) -> Result:
    """Log the best validation value, and the figures of the best checkpoint."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    metrics = {name: value for name, value in logged.items() if name.startswith("val/")} or logged
    best = best_checkpoint(trainer)
    if best.best_model_score is not None:
        checkpoint = load_weights(cli.model, Path(best.best_model_path))
        metrics[f"best/{best.monitor}"] = float(best.best_model_score)
        run.log_metrics({f"best/{best.monitor}": float(best.best_model_score)}, checkpoint["global_step"])
    return Result(run.id, metrics, took, fit_figures(run, cli.model, cli.datamodule))
