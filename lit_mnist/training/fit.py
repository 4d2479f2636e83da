"""`lit-mnist fit`: one training, one run, however often it is interrupted."""

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler

from lit_mnist.errors import Interrupted, UsageError, UserError
from lit_mnist.models import Autoencoder
from lit_mnist.signals import SignalWatch
from lit_mnist.slurm import allocation, check_tasks, leave_tasks, threads_of_job
from lit_mnist.terminal import note
from lit_mnist.tracking.folder import CONFIG, BusyError, has_unsent
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.logger import FILES, MLflowTracker
from lit_mnist.tracking.pages import show_page
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.queries.lookup import KEY, FoundRun, find_key
from lit_mnist.tracking.run import Run, clean_folder, open_run, resume_run
from lit_mnist.tracking.store import find_store
from lit_mnist.training.checkpoints.exact_resume import ExactResume
from lit_mnist.training.checkpoints.files import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    best_callback,
    lasting_checkpoints,
    load_weights,
)
from lit_mnist.training.checkpoints.resume_point import (
    CHECKPOINTS,
    ResumePoint,
    config_diff,
    find_resume_point,
    find_run_to_resume,
    nothing_left,
    point_to_send,
)
from lit_mnist.training.config_errors import library_errors
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.description import command_tag, describe, describe_experiment
from lit_mnist.training.gc_freeze import gc_freeze
from lit_mnist.training.lightning.fast_step import hide_no_gpu, use_fast_step
from lit_mnist.training.lightning.ranks import (
    HangGuard,
    LaunchedRanks,
    forks_processes,
    is_lost_peer,
    is_started_rank,
    make_rendezvous_interruptible,
    other_rank_context,
    rank_0_context,
    run_of_rank_0,
)
from lit_mnist.training.progress import progress_callback
from lit_mnist.training.report import ReconstructionSeries, Result, fit_figures, show


@dataclass
class _Fit:
    """The parts of one fit; the run is opened last, and passed beside them."""

    cli: LitCLI
    point: ResumePoint | None
    """Where training goes on; None for a new run."""
    trainer: Trainer
    tracker: MLflowTracker
    exact_resume: ExactResume
    best: ModelCheckpoint
    hang_guard: HangGuard
    offline: bool
    leased: bool
    tags: Mapping[str, str]


def fit(
    arguments: list[str],
    callbacks: Sequence[Callback] = (),
    watch: SignalWatch | None = None,
    tags: Mapping[str, str] | None = None,
    leased: bool = False,
) -> Result | None:
    """Train what `arguments` describe, as one MLflow run.

    Args:
        arguments: Those of `lit-mnist fit`.
        callbacks: Further callbacks, which are called after those that save the training.
        watch: Notes signals, if the caller does so already.
        tags: Further tags of a new run.
        leased: The caller has proof that no other host works on the run to resume.

    Returns:
        None on ranks other than 0, and if a finished run has nothing left to train.

    Raises:
        UserError: something is wrong that the user can fix.
        Interrupted: a signal came; the run is saved.

    """
    options, flags = _split_options(arguments)
    if (job := allocation()) is not None and not job.step and not is_started_rank():
        leave_tasks()  # a process of the batch script is no rank, whatever number of tasks the job asked for
    with SignalWatch() if watch is None else nullcontext(watch) as watch, TemporaryDirectory() as received:
        watch.check()
        peers = LaunchedRanks.connect() if options.resume or options.key else None
        found, sent = _find_run(options, watch, peers, Path(received))
        if sent and sent["done"]:
            return None
        cli = LitCLI(flags if found is None else ["--config", str(found.folder / CONFIG), *flags])
        check_fit(cli)
        if (threads := cli.config["threads"] or threads_of_job()) is not None:
            # Before anything is computed: the number of threads decides how sums are rounded.
            torch.set_num_threads(threads)
        # Reads the images, and so reports missing or damaged ones before there is a run.
        cli.datamodule.setup("fit")
        point = None if found is None else find_resume_point(found, cli.model, sent)
        tags = {**(tags or {}), **({KEY: options.key} if options.key else {})}
        tags |= command_tag(arguments, tags) if found is None else {}
        work = _prepare(cli, point, callbacks, watch, options.offline, leased, tags)
        if _is_done(work, peers, watch):
            return None
        watch.check()
        # Only now is the run created: what cannot even start leaves none behind.
        try:
            with _open(work) as run:
                result = _train(work, run)
        except BusyError:
            if point is not None:
                point.discard()
            raise
        if run is not None:
            clean_folder(run)
    if result is not None:
        show(result, "fit")
    return result


def _find_run(
    options: argparse.Namespace, watch: SignalWatch, peers: LaunchedRanks | None, folder: Path
) -> tuple[FoundRun | None, Mapping[str, Any] | None]:
    """Find the run that `--resume` or `--key` names; None if the fit starts a new one.

    Args:
        options: The options of this fit.
        watch: Notes signals.
        peers: The ranks that were launched beside this one; those other than rank 0 do not look for the run.
        folder: Receives what rank 0 sends of the run.

    Returns:
        The run, and on a rank other than 0 what rank 0 has sent.

    Raises:
        UserError: there is no run to resume, or the store cannot be opened.
        Interrupted: a signal came meanwhile.

    """
    if peers is not None and peers.rank > 0:
        sent = peers.receive(folder, watch)
        run = sent["run"]
        return (None if run is None else FoundRun(run, folder, find_store(), None, "RUNNING")), sent
    rank_0_run = run_of_rank_0()
    try:
        wanted = options.resume
        if options.key is not None:
            wanted = rank_0_run or find_key(options.key, options.offline)
        return (None if wanted is None else find_run_to_resume(wanted, options.offline, rank_0_run)), None
    except UserError:
        watch.check()  # a signal during the wait for a store that is away matters more than its error
        raise


def _split_options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split off the options that are no configuration: `--resume`, `--key` and `--offline`."""
    # They say how this process works and not what is trained: in a stored configuration they would be repeated.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--resume")
    parser.add_argument("--key")
    parser.add_argument("--offline", action="store_true")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        if error.argument_name == "--key":
            raise UsageError("--key needs a name, which this command's run is found by later") from None
        raise UsageError("--resume needs a run's id, its beginning, or last") from None
    if known.key is not None and not re.fullmatch(r"\w[\w.-]*", known.key):
        raise UsageError(f"--key {known.key!r}: letters, digits, dots, dashes and underscores only")
    if known.key is not None and known.resume is not None:
        raise UsageError("--key finds the run to resume itself: leave --resume out")
    if known.resume is not None and not known.resume.strip():
        raise UsageError("--resume is empty: it needs a run's id, its beginning, or last")
    return known, rest


def check_fit(cli: LitCLI) -> None:
    """Refuse a model that cannot take the data, and strategies that split a model over devices.

    Raises:
        UsageError: the model has too few classes, takes images of another shape, or stops early by a validation
            that does not take place; or the strategy is sharded.

    """
    # By name, since Lightning's own error for a strategy whose package is missing would ask to install it.
    strategy = str(cli.config["trainer"]["strategy"])
    for name in ("fsdp", "deepspeed", "model_parallel", "modelparallel"):
        if name in strategy.lower():
            raise UsageError(
                f"--trainer.strategy {name}: checkpoints are single files, which sharded strategies do not write;"
                " take ddp, since every model here fits on one device"
            )
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
    if model.get("patience") is not None and cli.datamodule.hparams["val_size"] == 0:
        raise UsageError(f"--model.patience {model['patience']} has no effect with --data.val_size 0")


def _prepare(
    cli: LitCLI,
    point: ResumePoint | None,
    callbacks: Sequence[Callback],
    watch: SignalWatch,
    offline: bool,
    leased: bool,
    tags: Mapping[str, str],
) -> _Fit:
    """Make the Trainer and its callbacks.

    Raises:
        UsageError: see `_check_trainer`.
        UserError: the checkpoint of a pretrained part of the model is missing or damaged.

    """
    # A checkpoint to resume from has the pretrained weights in it.
    pretrained = getattr(cli.model, "pretrained", None)
    if pretrained is not None and (point is None or point.checkpoint is None):
        pretrained.check()
    tracker = MLflowTracker(hyperparams=False)  # the whole configuration is logged, once in a run's life
    best_is_lost = point is not None and point.checkpoint is not None and point.checkpoint.best_is_lost
    exact_resume = ExactResume(watch, cli.checkpointing, int(cli.config.seed_everything or 0), best_is_lost)
    best = best_callback(cli.model)
    # ExactResume is first: the checkpoint of a step is written before any other callback begins the next one.
    ours: list[Callback] = [exact_resume, *callbacks, best]
    if isinstance(cli.model, Autoencoder) and cli.config["tracking"].figures:
        ours.append(ReconstructionSeries(tracker))
    if cli.config["trainer"]["enable_progress_bar"] is not False:
        ours.append(progress_callback())
    trainer = cli.make_trainer(logger=tracker, callbacks=ours, plugins=[AtomicCheckpointIO()])
    _check_trainer(trainer, cli)
    hang_guard = HangGuard()
    if trainer.world_size > 1:
        trainer.callbacks.insert(0, hang_guard)  # type: ignore[attr-defined]
        make_rendezvous_interruptible(trainer, watch)
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PassThroughProfiler) and not profiler.filename:
        profiler.filename = "profile"  # without a name, Lightning logs the report as an INFO message only
    hide_no_gpu()
    use_fast_step(trainer)
    return _Fit(cli, point, trainer, tracker, exact_resume, best, hang_guard, offline, leased, tags)


def _check_trainer(trainer: Trainer, cli: LitCLI) -> None:
    """Refuse, before there is a run, settings of the Trainer that cannot work.

    Raises:
        UsageError: processes are forked, the batch size is no multiple of the devices, there are several nodes and
            no launcher, or the precision is replaced by another one.

    """
    devices = trainer.world_size // trainer.num_nodes
    check_tasks(devices, trainer.num_nodes)
    if forks_processes(trainer):
        raise UsageError("--trainer.strategy: take ddp; forked or spawned processes cannot share a run's tracking")
    cli.datamodule.check_batch_size(trainer.world_size)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and type(environment) is LightningEnvironment and "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"--trainer.num_nodes {trainer.num_nodes}: nothing has started the other nodes; launch with"
            f" `srun`, or on each node with `torchrun --nnodes {trainer.num_nodes} --rdzv-endpoint HOST:PORT"
            " -m lit_mnist.cli fit ...`"
        )
    # Lightning replaces 16-mixed on a CPU by bf16-mixed, with a warning that is easily missed (2.6).
    wanted = str(cli.config["trainer"]["precision"])
    if wanted in ("16", "16-mixed") and trainer.precision == "bf16-mixed":
        raise UsageError(f"--trainer.precision {wanted}: a CPU has no float16 mixed precision; take bf16-mixed")


def _is_done(job: _Fit, peers: LaunchedRanks | None, watch: SignalWatch) -> bool:
    """Return True, and say so, if the run is finished and its training has nothing left to do.

    Rank 0 decides, and sends the ranks that were launched beside it what it resumes.
    """
    if peers is not None and peers.rank > 0:
        return False  # rank 0 has decided so
    point, reason = job.point, None
    if point is not None and point.checkpoint is not None:
        reason = nothing_left(point.checkpoint.content, job.trainer, job.cli.model)
        # A run that was killed at the very end still has to draw its figures, or to send what it has logged.
        if point.status != "FINISHED" or (not job.offline and has_unsent(point.folder)):
            reason = None
    if peers is not None:
        peers.send(*point_to_send(point, done=reason is not None))
        if reason is not None:
            peers.wait_until_received(watch)
    if reason is None or point is None:
        return False
    if job.trainer.is_global_zero:
        print(f"run {point.run.id} is finished, {reason}: nothing left to do")
        point.discard()
    return True


@contextmanager
def _open(job: _Fit) -> Iterator[Run | None]:
    """Open the run of this fit, a new one or the one to resume; None on ranks other than 0."""
    if not job.trainer.is_global_zero:
        with other_rank_context():
            yield None
        return
    names, point, cli = job.cli.config["tracking"], job.point, job.cli
    if point is not None:
        opened = resume_run(point.run, names.system_metrics, offline=job.offline, leased=job.leased)
    else:
        # MLflow would make a name up from the random numbers that the seed has just fixed: always the same one.
        name = (
            names.name or f"{type(cli.model).__name__} {cli.datamodule.dataset} seed {cli.config.seed_everything}"
        )
        opened = open_run(names.experiment, name, None, names.system_metrics, offline=job.offline, tags=job.tags)
    with opened as run:
        config = cli.config_yaml()
        if point is None:
            # Logged once in a run's life: MLflow refuses a parameter with another value. Changes become tags.
            run.log_params(cli.params())
            print(f"run {run.id} in experiment {run.experiment}", flush=True)
        else:
            _announce(run, point, config_diff(run.folder / CONFIG, config))
        if run.experiment_id:
            print(show_page(run.store, run.experiment_id, run.id), flush=True)
        # From here on the run can be resumed: it has its configuration, and its parameters.
        replace_text(run.folder / CONFIG, config)
        run.log_text(config, CONFIG)
        job.tags = describe(run, job.tags)
        # In the uploader's thread: listing packages and asking git take longer than the first epochs of a small
        # network.
        run.submit(lambda: _log_provenance(run, job))
        (run.folder / FILES).mkdir(exist_ok=True)
        for callback in job.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run.folder / CHECKPOINTS)
        # The callbacks were made before the run, whose folder they write to.
        job.exact_resume.folder = run.folder / CHECKPOINTS
        # A checkpoint must never be newer than the journal: the steps before it are not logged again after a
        # resume.
        job.exact_resume.before_save = run.sync
        job.exact_resume.upload = lambda: _upload_checkpoints(run)
        job.hang_guard.before_exit = lambda: _mark_killed(run)
        job.tracker.run = run
        try:
            with rank_0_context(run.id):
                yield run
        except Interrupted:
            print(f"run {run.id} is saved; `lit-mnist fit --resume {run.id}` goes on with it", flush=True)
            raise


def _announce(run: Run, point: ResumePoint, changes: dict[str, str]) -> None:
    """Say and log where training goes on, and which settings are different from now on."""
    print(f"run {run.id} in experiment {run.experiment} goes on from step {point.step:,}", flush=True)
    for name, change in changes.items():
        print(f"  {name}: {change}", flush=True)
    run.set_tags({f"config_diff.{name}": f"{change} from step {point.step}" for name, change in changes.items()})
    # Before the new configuration is written: killed in between, the run is resumed with a change again.
    run.rewind(point.step if point.checkpoint else -1, changed=bool(changes))


def _log_provenance(run: Run, job: _Fit) -> None:
    """Log code, packages and data; slow, and so done in the background of training."""
    versions = package_versions()
    tags = device_tags(job.trainer.strategy.root_device.type, job.trainer.world_size)
    tags |= {**git_state(), **version_tags(versions), "monitor": job.cli.model.monitor}
    if job.point is not None:
        before = run.tags()
        changes = {name: f"{before[name]} → {tag}" for name, tag in tags.items() if before.get(name, tag) != tag}
        tags |= {f"config_diff.{name}": change for name, change in changes.items()}
    run.set_tags(tags)
    run.log_text("".join(f"{name}=={version}\n" for name, version in versions.items()), "packages.txt")
    data = job.cli.datamodule
    run.log_dataset(data.dataset, data.digest(), data.sizes())
    describe_experiment(run)


def _upload_checkpoints(run: Run) -> None:
    """Log what another machine needs to go on if this one is lost: the best and the last checkpoint.

    In this order, and as they are now: from a last checkpoint that is older than the best one, training makes that
    best one again, but not the other way round.
    """
    try:
        for name in (BEST, LAST):
            if (path := run.folder / CHECKPOINTS / name).exists():
                run.log_file(path, CHECKPOINTS, copy=True)
    except OSError as error:  # the training itself is saved; the next upload tries again
        note(f"run {run.id}: the checkpoints are not uploaded this time: {error}")


def _mark_killed(run: Run) -> None:
    """Set the run's status while its training hangs and this process is about to be killed."""
    entry = {"kind": "status", "status": "KILLED", "end_time": time.time_ns() // 1_000_000}
    run.journal.append(entry, reserved=True)
    run.uploader.close()


def _train(job: _Fit, run: Run | None) -> Result | None:
    """Train, and log the results; on ranks other than 0, `run` and the result are None.

    Raises:
        UserError: another rank has ended.
        UsageError: Lightning refuses a setting.

    """
    start, trainer = time.perf_counter(), job.trainer
    path = None
    if job.point is not None and job.point.checkpoint is not None:
        path = job.point.checkpoint.path
        if run is not None:  # a run that was offline gets a new id, and its folder a new name, in the store
            path = run.folder / CHECKPOINTS / path.name
    try:
        guard = job.hang_guard.active(trainer) if trainer.world_size > 1 else nullcontext()
        with gc_freeze(), guard, library_errors("--trainer", raised_in=("/lightning/pytorch/", "/torch/optim/")):
            trainer.fit(job.cli.model, datamodule=job.cli.datamodule, ckpt_path=path)
    except BaseException as error:
        if run is not None:
            with suppress(Exception):  # the first error is the one that counts
                _log_files(run)
        if trainer.world_size > 1 and is_lost_peer(error):
            raise UserError(f"another process of this training is gone: {' '.join(str(error).split())}") from None
        raise
    if run is None:
        return None
    took = time.perf_counter() - start
    keep = job.cli.config["tracking"].keep_checkpoints
    if keep == "best" and any(getattr(each, "discards_checkpoints", False) for each in trainer.callbacks):  # type: ignore[attr-defined]
        keep = "none"
    _log_files(run, keep)
    minutes = job.cli.checkpointing.upload_every_n_minutes
    if job.point is not None or (minutes is not None and took >= 60 * minutes):
        # What an interruption, or an upload in mid-training, has logged for whoever resumes the run.
        for name in _left_out(run, keep):
            run.delete_artifact(f"{CHECKPOINTS}/{name}")
    return _conclude(job, run, took)


def _log_files(run: Run, keep: str = "all") -> None:
    """Log checkpoints, also those of a user's callbacks, and all that was written to `log_dir`.

    Args:
        run: The run.
        keep: `all` for the best and the last checkpoint, `best` for that one, `none` for neither.

    """
    for path in lasting_checkpoints(run.folder / CHECKPOINTS):
        if path.name not in _left_out(run, keep):
            run.log_file(path, CHECKPOINTS)
    for path in sorted((run.folder / FILES).rglob("*")):
        if path.is_file():
            run.log_file(path, str(path.relative_to(run.folder).parent))


def _left_out(run: Run, keep: str) -> Sequence[str]:
    """The checkpoints that are not kept as artifacts, see `_log_files`."""
    if keep == "none":
        return (BEST, LAST)
    # A training that was never validated has no best checkpoint: the last one stands for it.
    return (LAST,) if keep == "best" and (run.folder / CHECKPOINTS / BEST).exists() else ()


def _conclude(job: _Fit, run: Run, took: float) -> Result:
    """Print the profiler's report; log the best validation value, and the figures of the best checkpoint."""
    profiler = job.trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PassThroughProfiler) and profiler.dirpath is not None:
        for path in sorted(Path(profiler.dirpath).glob(f"*{profiler.filename}*.txt")):
            print(path.read_text())
    logged = {name: float(value) for name, value in job.trainer.callback_metrics.items() if "/" in name}
    metrics = {name: value for name, value in logged.items() if name.startswith("val/")} or logged
    best = job.best
    if best.best_model_score is not None:
        # From here on the model is that of the best checkpoint: the figures below show what `test` will measure.
        checkpoint = load_weights(job.cli.model, Path(best.best_model_path))
        metrics[f"best/{best.monitor}"] = float(best.best_model_score)
        run.log_metrics({f"best/{best.monitor}": float(best.best_model_score)}, checkpoint["global_step"])
    drawn = fit_figures(run, job.cli.model, job.cli.datamodule) if job.cli.config["tracking"].figures else []
    describe(run, job.tags, metrics, drawn)
    return Result(run.id, metrics, took, drawn)
