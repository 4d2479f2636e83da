"""`lit-mnist fit`: one training is one run, however often it is interrupted.

The function `fit` shows the order of the steps: find the run to resume, create model and data, choose the
checkpoint, make the Trainer, open the run, train, and log the results. The checks are in `checks.py`, the search
for the run and its checkpoint in `checkpoints/resume_point.py`, and the callback that saves and restores a
training in `checkpoints/exact_resume.py`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler

from lit_mnist.errors import Interrupted, UserError
from lit_mnist.models import Autoencoder
from lit_mnist.signals import SignalWatch
from lit_mnist.slurm import allocation, leave_tasks, threads_of_job
from lit_mnist.tracking.folder import CONFIG, BusyError
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.logger import FILES, MLflowTracker
from lit_mnist.tracking.pages import show_page
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.queries.lookup import KEY
from lit_mnist.tracking.run import Run, clean_folder, open_run, resume_run
from lit_mnist.training.checkpoints.artifacts import delete_left_out, log_checkpoints, upload_checkpoints
from lit_mnist.training.checkpoints.exact_resume import ExactResume
from lit_mnist.training.checkpoints.files import CHECKPOINTS, AtomicCheckpointIO, best_callback, load_weights
from lit_mnist.training.checkpoints.resume_point import (
    ResumePoint,
    config_diff,
    find_resume_point,
    find_run_to_resume,
    is_done,
)
from lit_mnist.training.checks import check_fit, check_trainer
from lit_mnist.training.config_errors import library_errors
from lit_mnist.training.configuration import FitOptions, LitCLI
from lit_mnist.training.description import command_tag, describe, describe_experiment
from lit_mnist.training.gc_freeze import gc_freeze
from lit_mnist.training.lightning.fast_step import hide_no_gpu, use_fast_step
from lit_mnist.training.lightning.ranks import (
    HangGuard,
    LaunchedRanks,
    is_lost_peer,
    is_started_rank,
    make_rendezvous_interruptible,
    other_rank_context,
    rank_0_context,
)
from lit_mnist.training.progress import progress_callback
from lit_mnist.training.report import ReconstructionSeries, Result, fit_figures, show


@dataclass
class _Setup:
    """Everything that a training needs except its run, which is opened last and passed separately."""

    options: FitOptions
    cli: LitCLI
    point: ResumePoint | None
    """Where training continues; None for a new run."""
    tags: Mapping[str, str]
    """Tags of a new run."""
    leased: bool
    """True if no other host can work on the run to resume."""
    trainer: Trainer
    tracker: MLflowTracker
    exact_resume: ExactResume
    best: ModelCheckpoint
    hang_guard: HangGuard


def fit(
    arguments: list[str],
    callbacks: Sequence[Callback] = (),
    watch: SignalWatch | None = None,
    tags: Mapping[str, str] | None = None,
    leased: bool = False,
) -> Result | None:
    """Train the model that `arguments` describe, as one MLflow run.

    Args:
        arguments: Those of `lit-mnist fit`.
        callbacks: Further callbacks, which are called after those that save the training.
        watch: The caller's signal watch; None to use a new one.
        tags: Further tags of a new run.
        leased: The caller knows for certain that no other host works on the run to resume.

    Returns:
        None on ranks other than 0, and if a finished run has nothing left to train.

    Raises:
        UserError: something is wrong that the user can fix.
        Interrupted: a signal came; the run is saved.

    """
    options, flags = FitOptions.split_off(arguments)
    if (job := allocation()) is not None and not job.step and not is_started_rank():
        leave_tasks()  # the batch script's process is not a rank, even if the job asked for several tasks
    with SignalWatch() if watch is None else nullcontext(watch) as watch, TemporaryDirectory() as received:
        watch.check()
        # Ranks launched by `srun` or `torchrun` must all resume the same run at the same step.
        peers = LaunchedRanks.connect() if options.resume or options.key else None
        found, sent = find_run_to_resume(options, watch, peers, Path(received))
        if sent and sent["done"]:
            return None
        # A resumed run uses its own configuration, overridden by flags.
        cli = _load(flags if found is None else ["--config", str(found.folder / CONFIG), *flags])
        # After the model is created, since its weights have to fit the checkpoint.
        point = None if found is None else find_resume_point(found, cli.model, sent)
        # `--key` becomes a tag of the new run, by which the next start of the same command finds it.
        tags = {**(tags or {}), **({KEY: options.key} if options.key else {})}
        tags |= command_tag(arguments, tags) if found is None else {}
        setup = _prepare(options, cli, point, tags, leased, callbacks, watch)
        if is_done(point, setup.trainer, cli.model, options, peers, watch):
            return None

        watch.check()
        # The run is created only now, so that a training that cannot start leaves no run behind.
        try:
            with _open(setup) as run:
                result = _train(setup, run)
        except BusyError:
            if point is not None:
                point.discard()  # remove what was fetched for this resume: another process works on the run
            raise
        # After the run is closed, since its folder holds data to upload until then.
        if run is not None:
            clean_folder(run)
    if result is not None:
        show(result, "fit")
    return result


def _load(flags: list[str]) -> LitCLI:
    """Create model and data, and read the images, so that bad images are reported before a run is created."""
    cli = LitCLI(flags)
    check_fit(cli)
    if (threads := cli.config["threads"] or threads_of_job()) is not None:
        # Before anything is computed, since the number of threads affects how sums are rounded.
        torch.set_num_threads(threads)
    cli.datamodule.setup("fit")
    return cli


def _prepare(
    options: FitOptions,
    cli: LitCLI,
    point: ResumePoint | None,
    tags: Mapping[str, str],
    leased: bool,
    callbacks: Sequence[Callback],
    watch: SignalWatch,
) -> _Setup:
    """Make the Trainer and its callbacks.

    Raises:
        UsageError: see `check_trainer`.
        UserError: the checkpoint of a pretrained part of the model is missing or damaged.

    """
    # A checkpoint to resume from contains the pretrained weights.
    pretrained = getattr(cli.model, "pretrained", None)
    if pretrained is not None and (point is None or point.checkpoint is None):
        pretrained.check()

    tracker = MLflowTracker(hyperparams=False)  # `_open` logs the whole configuration, once per run
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
    check_trainer(trainer, cli)

    # Ranks can wait for each other forever: signals must work even if one rank hangs or never starts.
    hang_guard = HangGuard()
    if trainer.world_size > 1:
        trainer.callbacks.insert(0, hang_guard)  # type: ignore[attr-defined]
        make_rendezvous_interruptible(trainer, watch)
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PassThroughProfiler) and not profiler.filename:
        profiler.filename = "profile"  # without a name, Lightning logs the report as an INFO message only
    hide_no_gpu()
    use_fast_step(trainer)
    return _Setup(options, cli, point, tags, leased, trainer, tracker, exact_resume, best, hang_guard)


@contextmanager
def _open(setup: _Setup) -> Iterator[Run | None]:
    """Open the run of this fit, a new one or the one to resume; None on ranks other than 0."""
    cli, point, offline = setup.cli, setup.point, setup.options.offline
    if not setup.trainer.is_global_zero:
        with other_rank_context():
            yield None
        return
    names = cli.config["tracking"]
    if point is not None:
        opened = resume_run(point.run, names.system_metrics, offline=offline, leased=setup.leased)
    else:
        # MLflow would draw a random name, which would always be the same, since the seed has just been set.
        name = (
            names.name or f"{type(cli.model).__name__} {cli.datamodule.dataset} seed {cli.config.seed_everything}"
        )
        opened = open_run(names.experiment, name, None, names.system_metrics, offline=offline, tags=setup.tags)
    with opened as run:
        config = cli.config_yaml()
        if point is None:
            # Logged once per run: MLflow refuses to change a parameter. Later changes become tags.
            run.log_params(cli.params())
            print(f"run {run.id} in experiment {run.experiment}", flush=True)
        else:
            _announce(run, point, config_diff(run.folder / CONFIG, config))
        if run.experiment_id:  # an offline run has neither an experiment id nor a page
            print(show_page(run.store, run.experiment_id, run.id), flush=True)
        # From here on the run can be resumed, since it has its configuration and its parameters.
        replace_text(run.folder / CONFIG, config)
        run.log_text(config, CONFIG)
        setup.tags = describe(run, setup.tags)
        # In the uploader's thread, because listing packages and running git take longer than the first epochs of a
        # small network.
        run.submit(lambda: _log_provenance(run, setup))
        _connect(setup, run)
        try:
            with rank_0_context(run.id):
                yield run
        except Interrupted:
            print(f"run {run.id} is saved; `lit-mnist fit --resume {run.id}` goes on with it", flush=True)
            raise


def _connect(setup: _Setup, run: Run) -> None:
    """Connect the logger and callbacks, which were created before the run, to the run and its folder."""
    setup.tracker.run = run
    (run.folder / FILES).mkdir(exist_ok=True)
    for callback in setup.trainer.checkpoint_callbacks:
        # This includes a user's own callbacks, which would otherwise write to `default_root_dir`.
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run.folder / CHECKPOINTS)
    setup.exact_resume.folder = run.folder / CHECKPOINTS
    # A checkpoint must never be newer than the journal, since a resume does not log earlier steps again.
    setup.exact_resume.before_save = run.sync
    setup.exact_resume.upload = lambda: upload_checkpoints(run)

    def mark_killed() -> None:
        """Set the run's status before the guard kills this process."""
        entry = {"kind": "status", "status": "KILLED", "end_time": time.time_ns() // 1_000_000}
        # `reserved` uses the disk space that is set aside for the end of a run, in case the disk is full.
        run.journal.append(entry, reserved=True)
        run.uploader.close()

    setup.hang_guard.before_exit = mark_killed


def _announce(run: Run, point: ResumePoint, changes: dict[str, str]) -> None:
    """Print and log where training continues, and which settings have changed."""
    print(f"run {run.id} in experiment {run.experiment} goes on from step {point.step:,}", flush=True)
    for name, change in changes.items():
        print(f"  {name}: {change}", flush=True)
    run.set_tags({f"config_diff.{name}": f"{change} from step {point.step}" for name, change in changes.items()})
    # Before the new configuration is written: if the process is killed in between, the next resume sees the change
    # again.
    run.rewind(point.step if point.checkpoint else -1, changed=bool(changes))


def _log_provenance(run: Run, setup: _Setup) -> None:
    """Log code, packages and data; called in the background of training, because it is slow."""
    versions = package_versions()
    tags = device_tags(setup.trainer.strategy.root_device.type, setup.trainer.world_size)
    tags |= {**git_state(), **version_tags(versions), "monitor": setup.cli.model.monitor}
    if setup.point is not None:
        before = run.tags()
        changes = {name: f"{before[name]} → {tag}" for name, tag in tags.items() if before.get(name, tag) != tag}
        tags |= {f"config_diff.{name}": change for name, change in changes.items()}
    run.set_tags(tags)
    run.log_text("".join(f"{name}=={version}\n" for name, version in versions.items()), "packages.txt")
    data = setup.cli.datamodule
    run.log_dataset(data.dataset, data.digest(), data.sizes())
    describe_experiment(run)


def _train(setup: _Setup, run: Run | None) -> Result | None:
    """Train, and log the results; on ranks other than 0, `run` and the result are None.

    Raises:
        UserError: another rank has ended.
        UsageError: Lightning refuses a setting.

    """
    start, trainer, point = time.perf_counter(), setup.trainer, setup.point
    path = None
    if point is not None and point.checkpoint is not None:
        path = point.checkpoint.path
        if run is not None:  # registering an offline run in the store gives it a new id and renames its folder
            path = run.folder / CHECKPOINTS / path.name
    try:
        guard = setup.hang_guard.active(trainer) if trainer.world_size > 1 else nullcontext()
        with gc_freeze(), guard, library_errors("--trainer", raised_in=("/lightning/pytorch/", "/torch/optim/")):
            trainer.fit(setup.cli.model, datamodule=setup.cli.datamodule, ckpt_path=path)
    except BaseException as error:
        if run is not None:
            with suppress(Exception):  # report the first error, not a second one
                _log_files(run, copy=True)
        if trainer.world_size > 1 and is_lost_peer(error):
            raise UserError(f"another process of this training is gone: {' '.join(str(error).split())}") from None
        raise
    if run is None:
        return None
    took = time.perf_counter() - start
    keep = setup.cli.config["tracking"].keep_checkpoints
    # A sweep's pruner has ended this training for good, so its checkpoints will not be used again.
    if keep == "best" and any(getattr(each, "discards_checkpoints", False) for each in trainer.callbacks):  # type: ignore[attr-defined]
        keep = "none"
    _log_files(run, keep)
    minutes = setup.cli.checkpointing.upload_every_n_minutes
    if point is not None or (minutes is not None and took >= 60 * minutes):
        # Checkpoints that an interruption or an upload during training has logged for a resume.
        delete_left_out(run, keep)
    return _conclude(setup, run, took, can_resume=keep == "all")


def _log_files(run: Run, keep: str = "all", copy: bool = False) -> None:
    """Log the checkpoints (see `log_checkpoints`), and all files in `log_dir`."""
    log_checkpoints(run, keep, copy)
    for path in sorted((run.folder / FILES).rglob("*")):
        if path.is_file():
            run.log_file(path, str(path.relative_to(run.folder).parent))


def _conclude(setup: _Setup, run: Run, took: float, can_resume: bool) -> Result:
    """Print the profiler's report; log the best validation value, and the figures of the best checkpoint."""
    trainer, cli, best = setup.trainer, setup.cli, setup.best
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PassThroughProfiler) and profiler.dirpath is not None:
        for path in sorted(Path(profiler.dirpath).glob(f"*{profiler.filename}*.txt")):
            print(path.read_text())
    # The last value of each metric. Training metrics are shown only if nothing was validated.
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    metrics = {name: value for name, value in logged.items() if name.startswith("val/")} or logged
    if best.best_model_score is not None:
        # From here on the model has the best checkpoint's weights: the figures show the model that `test`
        # measures.
        checkpoint = load_weights(cli.model, Path(best.best_model_path))
        metrics[f"best/{best.monitor}"] = float(best.best_model_score)
        run.log_metrics({f"best/{best.monitor}": float(best.best_model_score)}, checkpoint["global_step"])
    drawn = fit_figures(run, cli.model, cli.datamodule) if cli.config["tracking"].figures else []
    describe(run, setup.tags, metrics, drawn, can_resume)
    return Result(run.id, metrics, took, drawn)
