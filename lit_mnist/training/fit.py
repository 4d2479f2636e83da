"""`lit-mnist fit`: one training, one run, however often it is interrupted."""

import argparse
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from lit_mnist.errors import Interrupted, UsageError, UserError
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.folder import CONFIG, BusyError, has_unsent
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.logger import MLflowTracker
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.run import Run, clean_folder, open_run
from lit_mnist.training.checkpoints.exact_resume import ExactResume
from lit_mnist.training.checkpoints.files import (
    NEXT,
    PREVIOUS,
    AtomicCheckpointIO,
    best_callback,
    load_weights,
    newest_good,
)
from lit_mnist.training.checkpoints.resume_point import (
    CHECKPOINTS,
    ResumePoint,
    config_diff,
    find_resume_point,
    nothing_left,
)
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.gc_freeze import gc_freeze
from lit_mnist.training.lightning.fast_step import hide_no_gpu, use_fast_step
from lit_mnist.training.lightning.ranks import is_lost_peer, other_rank_context, rank_0_context, run_of_rank_0
from lit_mnist.training.progress import progress_callback
from lit_mnist.training.report import Result, fit_figures, show


@dataclass
class Fit:
    """What one fit works with."""

    cli: LitCLI
    trainer: Trainer
    tracker: MLflowTracker
    resume: ExactResume
    best: ModelCheckpoint
    former: ResumePoint | None = None
    checkpoint: tuple[Path, dict[str, Any]] | None = None
    """Where training goes on: path and content."""
    offline: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    leased: bool = False


def fit(
    arguments: list[str],
    callbacks: Sequence[Callback] = (),
    watch: SignalWatch | None = None,
    tags: Mapping[str, str] | None = None,
    leased: bool = False,
) -> Result | None:
    """Train what `arguments` describe, as one MLflow run; None on ranks other than 0, and where nothing is left.

    Args:
        arguments: Those of `lit-mnist fit`.
        callbacks: To be called beside the project's own.
        watch: Where signals are noted already.
        tags: Of a new run, beside the project's own.
        leased: The caller has proof that no other host works on the run to resume.
    """
    options, flags = _options(arguments)
    with SignalWatch() if watch is None else nullcontext(watch) as watch:
        watch.check()
        led = run_of_rank_0()
        former = None if options.resume is None else _find_former(options, led, watch)
        cli = LitCLI(flags if former is None else ["--config", str(former.config), *flags])
        check_fit(cli)
        if cli.config["threads"] is not None:
            torch.set_num_threads(cli.config["threads"])
        cli.datamodule.setup("fit")
        job = _prepare(cli, former, callbacks, watch)
        job.offline, job.tags, job.leased = options.offline, tags or {}, leased
        if _is_done(job):
            return None
        if job.checkpoint is None and (pretrained := getattr(cli.model, "pretrained", None)) is not None:
            pretrained.check()
        watch.check()
        # Only now is there a run: what cannot even start leaves none behind.
        result = None
        try:
            with _run_of(job) as run:
                result = _train(job, run)
        except BusyError:
            if job.former is not None:
                job.former.forget()
            raise
        if run is None or result is None:
            return None
        clean_folder(run)
    show(result, "fit")
    return result


def _find_former(options: argparse.Namespace, led: str | None, watch: SignalWatch) -> ResumePoint:
    """The run to go on with; a signal that came while the store was waited for counts more than its error."""
    try:
        return find_resume_point(options.resume, options.offline, led)
    except UserError:
        watch.check()
        raise


def _is_done(job: Fit) -> bool:
    """Whether the run is finished and its training has nothing left to do, which is said."""
    if job.former is None or job.checkpoint is None:
        return False
    reason = nothing_left(job.checkpoint[1], job.trainer, job.cli.model)
    if reason is None or job.former.status != "FINISHED":  # killed at the very end, it has yet to draw its figures
        return False
    if not job.offline and has_unsent(job.former.folder):  # killed even later, it has yet to tell the store
        return False
    if job.trainer.is_global_zero:
        print(f"run {job.former.run_id} is finished, {reason}: nothing left to do")
        job.former.forget()
    return True


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is not configuration, and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--resume")
    parser.add_argument("--offline", action="store_true")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        raise UsageError("--resume needs a run's id, its beginning, or last") from None
    if known.resume is not None and not known.resume.strip():
        raise UsageError("--resume is empty: it needs a run's id, its beginning, or last")
    return known, rest


def check_fit(cli: LitCLI) -> None:
    """Refuse a model that cannot take the data.

    Raises:
        UsageError: it has too few classes, or takes images of another shape.
    """
    classes, shape = len(cli.datamodule.class_names), list(cli.datamodule.image_shape)
    model = cli.model.hparams
    if model.get("num_classes", classes) < classes:
        raise UsageError(
            f"--model.num_classes {model['num_classes']}: {cli.datamodule.dataset} has {classes} classes"
        )
    if list(model.get("image_shape", shape)) != shape:
        raise UsageError(
            f"--model.image_shape {list(model['image_shape'])}: those of {cli.datamodule.dataset} are {shape}"
        )


def _prepare(cli: LitCLI, former: ResumePoint | None, callbacks: Sequence[Callback], watch: SignalWatch) -> Fit:
    """The Trainer, and where it goes on."""
    checkpoint = newest_good(former.checkpoints, cli.model) if former else None
    tracker = MLflowTracker(hyperparams=False)  # the whole configuration is logged, once in a run's life
    resume = ExactResume(watch, cli.checkpointing, int(cli.config.seed_everything or 0))
    best = best_callback(cli.model)
    ours: list[Callback] = [resume, *callbacks, best]
    if cli.config["trainer"]["enable_progress_bar"] is not False:
        ours.append(progress_callback())
    io = AtomicCheckpointIO(checkpoint[1] if checkpoint else None)
    trainer = cli.make_trainer(logger=tracker, callbacks=ours, plugins=[io])
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UsageError("--trainer.strategy: take ddp; forked or spawned processes cannot share a run's tracking")
    _check_devices(trainer, cli)
    hide_no_gpu()
    use_fast_step(trainer)
    return Fit(cli, trainer, tracker, resume, best, former, checkpoint)


def _check_devices(trainer: Trainer, cli: LitCLI) -> None:
    """Refuse, before there is a run, devices that cannot share a batch and nodes that nobody starts.

    Raises:
        UsageError: the batch size is no multiple of the devices, or there are several nodes and no launcher.
    """
    batch_size, devices = int(cli.datamodule.hparams["batch_size"]), trainer.world_size
    if batch_size % devices and not cli.datamodule.full_dataset_per_rank:
        raise UsageError(
            f"--data.batch_size {batch_size} cannot be shared equally by {devices} devices:"
            f" take a multiple of {devices}"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and type(environment) is LightningEnvironment and "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"--trainer.num_nodes {trainer.num_nodes}: nothing has started the other nodes; launch with"
            f" `srun`, or on each node with `torchrun --nnodes {trainer.num_nodes} --rdzv-endpoint HOST:PORT"
            " -m lit_mnist.cli fit ...`"
        )


@contextmanager
def _run_of(job: Fit) -> Iterator[Run | None]:
    """The run of this fit, new or the former one; None in the processes that work for rank 0's."""
    if not job.trainer.is_global_zero:
        with other_rank_context():
            yield None
        return
    names, former = job.cli.config["tracking"], job.former
    with open_run(
        names.experiment,
        names.name or _run_name(job.cli),
        former.run_id if former else None,
        names.system_metrics,
        resume=former is not None,
        offline=job.offline,
        leased=job.leased,
        tags=job.tags,
    ) as run:
        if former is None:
            run.log_params(job.cli.params())
        config = job.cli.config_yaml()
        changes = config_diff(run.folder / CONFIG, config) if former else {}
        if former is not None:
            # Before the new configuration is written: killed in between, the run is resumed with a change again.
            run.rewind(job.checkpoint[1]["global_step"] if job.checkpoint else -1, changed=bool(changes))
        # A run with a configuration can be gone on with, and has its parameters by then.
        replace_text(run.folder / CONFIG, config)
        run.log_text(config, CONFIG)
        if former is None:
            print(f"run {run.id} in experiment {run.experiment}", flush=True)
        else:
            _announce(job, run, changes)
        run.uploader.submit(lambda: _log_provenance(run, job))
        folder = run.folder / CHECKPOINTS
        job.resume.folder = folder
        for callback in job.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder)
        job.resume.before_save = run.sync
        job.tracker.run = run
        try:
            with rank_0_context(run.id):
                yield run
        except Interrupted:
            print(f"run {run.id} is saved; `lit-mnist fit --resume {run.id}` goes on with it", flush=True)
            raise


def _announce(job: Fit, run: Run, changes: dict[str, str]) -> None:
    """Say where training goes on, and what is different from now on."""
    step = job.checkpoint[1]["global_step"] if job.checkpoint else 0
    print(f"run {run.id} in experiment {run.experiment} goes on from step {step:,}", flush=True)
    for name, change in changes.items():
        print(f"  {name}: {change}", flush=True)
    run.set_tags({f"config_diff.{name}": f"{change} from step {step}" for name, change in changes.items()})


def _run_name(cli: LitCLI) -> str:
    # MLflow would make one up from the random numbers that the seed has just fixed: the same for every run.
    return f"{type(cli.model).__name__} {cli.datamodule.dataset} seed {cli.config.seed_everything}"


def _log_provenance(run: Run, job: Fit) -> None:
    """Log code, packages and data: what takes a moment, and so is done beside the training."""
    versions = package_versions()
    tags = device_tags(job.trainer.strategy.root_device.type, job.trainer.world_size)
    tags |= {**git_state(), **version_tags(versions), "monitor": job.cli.model.monitor}
    if job.former is not None:
        before = run.data().data.tags if run.mlflow is not None else {}
        changes = {name: f"{before[name]} → {tag}" for name, tag in tags.items() if before.get(name, tag) != tag}
        tags |= {f"config_diff.{name}": change for name, change in changes.items()}
    run.set_tags(tags)
    run.log_text("".join(f"{name}=={version}\n" for name, version in versions.items()), "packages.txt")
    data = job.cli.datamodule
    run.log_dataset(data.dataset, data.digest(), data.sizes())


def _train(job: Fit, run: Run | None) -> Result | None:
    start = time.perf_counter()
    path = None
    if job.checkpoint:  # the folder may have moved when its run got its id in the store
        path = job.checkpoint[0] if run is None else run.folder / CHECKPOINTS / job.checkpoint[0].name
    try:
        with gc_freeze():
            job.trainer.fit(job.cli.model, datamodule=job.cli.datamodule, ckpt_path=path)
    except BaseException as error:
        if run is not None:
            with suppress(Exception):  # the first error is the one that counts
                _log_checkpoints(run)
        if job.trainer.world_size > 1 and is_lost_peer(error):
            raise UserError(f"another process of this training is gone: {' '.join(str(error).split())}") from None
        if _is_complaint(error):
            line = " ".join(str(error).split())
            raise UsageError(f"--trainer: {line} (`lit-mnist --debug fit ...` shows the traceback)") from None
        raise
    if run is None:
        return None
    took = time.perf_counter() - start
    _log_checkpoints(run)
    return _conclude(job, run, took)


def _is_complaint(error: BaseException) -> bool:
    """True if Lightning itself raised the error, about a setting: a model's own error keeps its traceback."""
    if isinstance(error, MisconfigurationException):
        return True
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    kinds = (TypeError, ValueError, RuntimeError, ZeroDivisionError)
    return isinstance(error, kinds) and ("/lightning/pytorch/" in where or "/torch/optim/" in where)


def _log_checkpoints(run: Run) -> None:
    """Log the best and the last one, and those of a user's own callbacks."""
    for path in sorted((run.folder / CHECKPOINTS).glob("[!.]*.ckpt")):
        if path.name not in (NEXT, PREVIOUS):
            run.log_file(path, CHECKPOINTS)


def _conclude(job: Fit, run: Run, took: float) -> Result:
    """Log the best validation value, and the figures of the best checkpoint."""
    logged = {name: float(value) for name, value in job.trainer.callback_metrics.items() if "/" in name}
    metrics = {name: value for name, value in logged.items() if name.startswith("val/")} or logged
    best = job.best
    if best.best_model_score is not None:
        checkpoint = load_weights(job.cli.model, Path(best.best_model_path))
        metrics[f"best/{best.monitor}"] = float(best.best_model_score)
        run.log_metrics({f"best/{best.monitor}": float(best.best_model_score)}, checkpoint["global_step"])
    drawn = fit_figures(run, job.cli.model, job.cli.datamodule) if job.cli.config["tracking"].figures else []
    return Result(run.id, metrics, took, drawn)
