"""Stages: trainings that experiments and sweeps build on, each of which is done only once.

A stage is identified by a hash of everything that affects its weights. Its run has the hash as a tag, so that
every process with the same tracking store finds the stage.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback

from lit_mnist.added_options import ADDED_OPTIONS
from lit_mnist.errors import UserError
from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import note
from lit_mnist.tracking.queries.lookup import fetched
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.store import Store, connect, find_store
from lit_mnist.training.checkpoints.files import BEST, CHECKPOINTS, LAST
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.fit import fit

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Preset = Literal["quick", "full"]
Checkpoint = Literal["best", "last"]
KEY, SOURCE, SECONDS = "stage.key", "stage.source", "stage.seconds"
WITHOUT_EFFECT = ("enable_progress_bar",)
"""Fields of the Trainer that do not affect the weights."""


@dataclass(frozen=True)
class Stage:
    """One `fit`, described by its flags; it may start from the checkpoint of another stage."""

    config: str
    """Name of the packaged configuration."""
    flags: tuple[str, ...] = ()
    """Flags of `fit`."""
    quick: tuple[str, ...] = ()
    """Flags that the quick preset adds."""
    source: "Stage | None" = None
    """The stage whose checkpoint this stage starts from."""
    source_flag: str = "--model.encoder_checkpoint"
    """The flag that takes the path of that checkpoint."""
    take: Checkpoint = "best"
    """Which checkpoint of the source is used."""

    def arguments(self, preset: Preset, seed: int) -> list[str]:
        """The arguments of `fit`, without the source's checkpoint."""
        cut = self.quick if preset == "quick" else ()
        return ["--config", self.config, *self.flags, *cut, "--seed_everything", str(seed)]


@lru_cache(maxsize=1024)
def stage_key(stage: Stage, preset: Preset, seed: int) -> str:
    """Return a hash of everything that affects the stage's weights, including the stages it builds on.

    Names in MLflow, the folder of the images and the paths of checkpoints are left out.
    """
    # The parsed configuration, so that defaults are included and the order of the flags does not matter.
    fields = yaml.safe_load(LitCLI(stage.arguments(preset, seed)).config_yaml())
    kept = {name: fields[name] for name in ("model", "data", "trainer", "seed_everything")}
    # The location of the images does not affect the weights, and differs between machines.
    kept["data"]["init_args"].pop("root", None)
    for name in WITHOUT_EFFECT:
        kept["trainer"].pop(name, None)
    # The only field of the Trainer that 2.6 has and 2.5.3 has not: the key is the same with both.
    kept["trainer"].setdefault("enable_autolog_hparams", True)
    for group, added in ADDED_OPTIONS.items():
        arguments = kept[group]["init_args"]
        for name in [name for name, neutral in added.items() if arguments.get(name) == neutral]:
            del arguments[name]
    # The key instead of the path: an encoder trained on another machine has the same key.
    if stage.source is not None:
        kept["source"] = [stage_key(stage.source, preset, seed), stage.source_flag, stage.take]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]


def find_stage(client: "MlflowClient", key: str) -> "Run | None":
    """Return the finished run of the stage, or else its newest run; None if it was never started."""
    # Newest first, but a finished run is preferred over later failed attempts.
    found = list(search_runs(client, f"tags.`{KEY}` = '{key}'"))
    return next((run for run in found if run.info.status == "FINISHED"), found[0] if found else None)


def train_stage(
    stage: Stage, preset: Preset, seed: int, watch: SignalWatch, callbacks: Sequence[Callback] = ()
) -> str:
    """Train the stage unless that is done, resuming an unfinished run; returns the id of its finished run.

    Args:
        stage: The stage; the stages it builds on are trained first.
        preset: Length of the training.
        seed: Seed of weights, data order and noise.
        watch: The signal watch of the process.
        callbacks: Added to the Trainer.

    Raises:
        Interrupted: a signal came; the next call resumes the training.
        UserError: training has failed.

    """
    # Outside the lock, since the source has a lock of its own.
    flags, of_source = take_source(stage, preset, seed, watch, callbacks)
    store = find_store()
    client, key = connect(store), stage_key(stage, preset, seed)
    # Searched inside the lock, since another process may have trained the stage meanwhile.
    with _locked(store, key, watch):
        found = find_stage(client, key)
        if found is not None and found.info.status == "FINISHED":
            return str(found.info.run_id)
        if found is not None:
            return _fit(client, ["--resume", found.info.run_id], {}, watch, callbacks)
        # A new run. Without a progress bar, since several stages share a terminal.
        arguments = [*stage.arguments(preset, seed), *flags, "--trainer.enable_progress_bar", "false"]
        tags = {KEY: key, **of_source}
        if SOURCE in tags:
            tags["mlflow.parentRunId"] = tags[SOURCE]
        return _fit(client, arguments, tags, watch, callbacks)


def take_source(
    stage: Stage, preset: Preset, seed: int, watch: SignalWatch, callbacks: Sequence[Callback] = ()
) -> tuple[list[str], dict[str, str]]:
    """Train the source of `stage` if needed; returns the flags and tags with which `fit` starts from it.

    Raises:
        Interrupted: a signal came; the next call resumes the training.
        UserError: training has failed.

    """
    if stage.source is None:
        return [], {}
    source = train_stage(stage.source, preset, seed, watch, callbacks)
    store = find_store()
    path = stage_checkpoint(connect(store), store, source, stage.take)
    return [stage.source_flag, str(path)], {SOURCE: source}


def stage_checkpoint(client: "MlflowClient", store: Store, run_id: str, take: Checkpoint) -> Path:
    """Return the path of a finished run's checkpoint, copied to where it stays.

    A run's own folder is removed when everything in it has been uploaded.

    Raises:
        UserError: the run has none.

    """
    folder = store.home / "stages" / run_id
    # From the store, since the run may have been trained on another machine.
    there = {Path(item.path).name for item in client.list_artifacts(run_id, CHECKPOINTS)}
    wanted = (BEST, LAST) if take == "best" else (LAST,)  # a run without validation has no best checkpoint
    name = next((name for name in wanted if name in there), None)
    if name is None:
        raise UserError(f"run {run_id} has no checkpoint {wanted[0]} among its artifacts: delete the run")
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, since another process may be fetching the same file.
        temporary = folder / f".{name}.{os.getpid()}"
        with fetched(client, run_id, f"{CHECKPOINTS}/{name}") as file:
            shutil.copyfile(file, temporary)
        temporary.replace(folder / name)
    return folder / name


def _fit(
    client: "MlflowClient",
    arguments: list[str],
    tags: dict[str, str],
    watch: SignalWatch,
    callbacks: Sequence[Callback],
) -> str:
    # The total duration of a stage, over all processes that worked on it, is reported with the claims.
    start = time.perf_counter()
    with suppress_stdout():
        result = fit(arguments, callbacks, watch, tags)
    assert result is not None, "one process is rank 0, and an unfinished run has something left"
    # Added to the time of earlier, interrupted processes.
    before = float(client.get_run(result.run_id).data.tags.get(SECONDS, 0))
    client.set_tag(result.run_id, SECONDS, f"{before + time.perf_counter() - start:.1f}")
    return result.run_id


@contextmanager
def _locked(store: Store, key: str, watch: SignalWatch) -> Iterator[None]:
    """Hold the stage's lock; waits while another process trains the stage."""
    # A file lock, for all processes on machines that share the project's folder.
    lock = FileLock(store.home / "stages" / f".{key}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note(f"another process trains the stage {key[:8]}: waiting for it")
        # In short waits, to check for signals in between.
        while not lock.is_locked:
            watch.check()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=1)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def suppress_stdout() -> Iterator[None]:
    """Discard printed text: the tables of a single fit do not belong in the output of an experiment."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
