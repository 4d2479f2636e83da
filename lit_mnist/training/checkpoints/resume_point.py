"""Where `fit --resume` continues: the run, its checkpoint, and whether anything is left to train."""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from lit_mnist.added_options import ADDED_OPTIONS
from lit_mnist.errors import UserError
from lit_mnist.models import LitModel
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.folder import CONFIG, has_unsent, read_record, upgrade_config
from lit_mnist.tracking.queries.lookup import FoundRun, fetch_folder, find_key, find_unfinished, resolve_run
from lit_mnist.tracking.store import find_store
from lit_mnist.training.checkpoints.files import (
    BEST,
    CHECKPOINTS,
    LAST,
    NEXT,
    PREVIOUS,
    STATE,
    read_checkpoint,
)
from lit_mnist.training.checkpoints.limits import nothing_left
from lit_mnist.training.configuration import FitOptions
from lit_mnist.training.lightning.ranks import LaunchedRanks, run_of_rank_0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that loads and fits the model."""

    path: Path
    content: dict[str, Any]
    best_is_lost: bool = False
    """True if `best.ckpt` is unusable and cannot be recreated. The best later checkpoint then replaces it."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.content["global_step"])


@dataclass(frozen=True)
class ResumePoint:
    """A run to resume and the checkpoint to resume from; found once and then passed on."""

    run: FoundRun
    folder: Path
    status: str
    """The run's status before it is resumed."""
    checkpoint: Checkpoint | None
    """None if the run was interrupted before its first checkpoint."""

    @property
    def step(self) -> int:
        """The step at which training continues."""
        return self.checkpoint.step if self.checkpoint else 0

    def discard(self) -> None:
        """Remove the run's folder if it was only fetched for this resume and has not been used."""
        # Read again, since another process may have taken over the run meanwhile and work in this folder.
        if read_record(self.folder) is None:
            shutil.rmtree(self.folder, ignore_errors=True)


def find_run_to_resume(
    options: FitOptions, watch: SignalWatch, peers: LaunchedRanks | None, received: Path
) -> tuple[FoundRun | None, Mapping[str, Any] | None]:
    """Find the run that `--resume` or `--key` names, and make sure that its folder has its configuration.

    If they are not on this machine, the configuration and the checkpoints are fetched from the store.

    Args:
        options: `resume` is a run's id, its beginning, or `last`: the newest unfinished run that belongs to no
            sweep.
        watch: The signal watch.
        peers: The connection to the ranks that were launched together with this one, if any.
        received: Folder for the files that rank 0 sends to the others.

    Returns:
        The run, None if the fit starts a new one; and the message of rank 0, None on rank 0 itself.

    Raises:
        UserError: there is no such run, it has no configuration, or the store cannot be opened.
        Interrupted: a signal came meanwhile.

    """
    # A rank launched by srun or torchrun uses the run that rank 0 has found. Its own search might find another
    # run, since rank 0 may already be working on that one.
    if peers is not None and peers.rank > 0:
        sent = peers.receive(received, watch)
        run_id = sent["run"]
        return (None if run_id is None else FoundRun(run_id, received, find_store(), None, "RUNNING")), sent
    # A rank that Lightning has started inherits rank 0's run from the environment, and needs no store.
    rank_0_run = run_of_rank_0()
    try:
        wanted = options.resume
        if options.key is not None:
            wanted = rank_0_run or find_key(options.key, options.offline)
        elif wanted == "last":
            wanted = rank_0_run or find_unfinished(options.offline)
        if wanted is None:
            return None, None
        run = resolve_run(wanted, offline=options.offline or rank_0_run is not None)
        if not (run.folder / CONFIG).exists():
            fetch_folder(run, (CONFIG,), (CHECKPOINTS,))
        if not (run.folder / CONFIG).exists():
            raise UserError(f"run {run.id} has no {CONFIG}: `lit-mnist fit` did not make it")
        upgrade_config(run.folder / CONFIG)
        return run, None
    except UserError:
        watch.check()  # a signal during the wait for an unreachable store takes precedence over the error
        raise


def find_resume_point(run: FoundRun, model: LitModel, sent: Mapping[str, Any] | None = None) -> ResumePoint:
    """Return the resume point of `run`: its newest valid checkpoint that fits `model`.

    Args:
        run: The run to resume.
        model: The model to be trained.
        sent: The message of rank 0, which describes the checkpoint that it has chosen; see `is_done`.

    Raises:
        UserError: there are checkpoints, but none is usable, or the run is finished and has kept none.

    """
    # Rank 0 chooses; the others use the checkpoint that it has sent, even if their disk has a newer one.
    folder = run.folder / CHECKPOINTS
    if sent is None:
        checkpoint = choose_checkpoint(folder, model)
        if checkpoint is None and run.status == "FINISHED":  # it would restart and replace its logged results
            raise UserError(
                f"run {run.id} is finished and kept no checkpoint to resume from: train it again, with"
                " --tracking.keep_checkpoints all, or `lit-mnist sweep --keep-checkpoints all`"
            )
    elif (path := folder / LAST).exists():
        checkpoint = Checkpoint(path, read_checkpoint(path, model), sent["best_is_lost"])
    else:
        checkpoint = None
    return ResumePoint(run, run.folder, run.status, checkpoint)


def is_done(
    point: ResumePoint | None,
    trainer: Trainer,
    model: LightningModule,
    options: FitOptions,
    peers: LaunchedRanks | None,
    watch: SignalWatch,
) -> bool:
    """Return True, and print so, if the run is finished and nothing is left to train.

    Rank 0 decides, and sends the run and the checkpoint to the ranks that were launched together with it.
    """
    if peers is not None and peers.rank > 0:
        return False  # if nothing was left, rank 0's message has made `fit` return before this call
    reason = None
    if point is not None and point.checkpoint is not None:
        reason = nothing_left(point.checkpoint.content, trainer, model)
        # A run that was killed at the very end may still have to draw figures or upload data.
        if point.status != "FINISHED" or (not options.offline and has_unsent(point.folder)):
            reason = None
    if peers is not None:
        message: dict[str, Any] = {"run": None, "done": reason is not None}
        files: dict[str, Path] = {}
        if point is not None and reason is None:
            # The file itself is sent, since other nodes may not share a disk, and all ranks must start at one
            # step.
            message |= {"run": point.run.id, "best_is_lost": False}
            files[CONFIG] = point.folder / CONFIG
            if point.checkpoint is not None:
                files[f"{CHECKPOINTS}/{LAST}"] = point.checkpoint.path
                message["best_is_lost"] = point.checkpoint.best_is_lost
        peers.send(message, files)
        if reason is not None:
            peers.wait_until_received(watch)
    if reason is None or point is None:
        return False
    if trainer.is_global_zero:
        print(f"run {point.run.id} is finished, {reason}: nothing left to do")
        point.discard()
    return True


def choose_checkpoint(folder: Path, model: LitModel) -> Checkpoint | None:
    """Return the checkpoint in `folder` to resume from, or None if there is none.

    It is the newest one that loads and fits `model`; a warning names those that do not. If `best.ckpt` is damaged,
    or older than the best checkpoint that this one refers to, an older checkpoint is used if training from there
    will save that best checkpoint again.

    Raises:
        UserError: there are checkpoints, but none is usable.

    """
    defects: list[str] = []

    def good_ones() -> Iterator[Checkpoint]:
        """The checkpoints that load, newest first; read lazily, since usually the first one is good."""
        # NEXT exists only if a process was killed between the two renames, and then it is the newest.
        for path in (folder / name for name in (NEXT, LAST, PREVIOUS)):
            if path.exists():
                try:
                    content = read_checkpoint(path, model)
                    if STATE not in content:
                        raise UserError(f"the checkpoint {path} was not written by `lit-mnist fit`")
                    yield Checkpoint(path, content)
                except UserError as error:
                    defects.append(str(error))

    good = good_ones()
    newest = next(good, None)
    if newest is None:
        if defects:
            raise UserError(f"no checkpoint in {folder} can be resumed: {defects[0]}")
        return None
    if defects:
        warnings.warn(f"{'; '.join(defects)}; taking {newest.path.name}, the one before", stacklevel=2)
    # The best checkpoint must be usable too: without it a finished run would have no best weights.
    best_score = _best_score(newest.content)
    if best_score is None:
        return newest
    try:
        best = read_checkpoint(folder / BEST, model)
        # A best checkpoint of a later step is no problem: training from `newest` with the same configuration saves
        # it again. But after an upload, the best checkpoint may be older than the one that `newest` refers to.
        if best["global_step"] < newest.step and _best_score(best) not in (None, best_score):
            raise UserError(f"{folder / BEST} is older than the best checkpoint of {newest.path.name}")
        return newest
    except UserError as error:
        lost = error
    # If the older checkpoint was saved before the lost best, training from it saves that best again.
    older = next(good, None)
    if older is not None and _best_score(older.content) != best_score:
        warnings.warn(f"{lost}; going on from {older.path.name}, which makes it again", stacklevel=2)
        return older
    warnings.warn(f"{lost}; the best checkpoint will be the best from here on", stacklevel=2)
    return replace(newest, best_is_lost=True)


def _best_score(content: Mapping[str, Any]) -> float | None:
    """Return the monitored value of the `best.ckpt` that a checkpoint refers to (itself, if it is the best)."""
    for state in content["callbacks"].values():
        if Path(str(state.get("best_model_path", ""))).name == BEST:
            return float(state["best_model_score"])
    return None


def config_diff(former: Path, config: str) -> dict[str, str]:
    """Return how the configuration `config` (YAML) differs from that in the file `former`: name to `old → new`."""

    def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Dotted names as on the command line."""
        for key, value in fields.items():
            # The paths of configuration files; their content is in the other fields.
            if key == "config":
                continue
            name = prefix.rstrip(".") if key == "class_path" else f"{prefix}{key}"
            if key == "init_args":
                yield from flat(value, prefix)
            elif isinstance(value, dict) and value:
                yield from flat(value, f"{name}.")
            else:
                yield name, value

    old, new = (dict(flat(yaml.safe_load(text))) for text in (former.read_text(), config))
    for group, added in ADDED_OPTIONS.items():
        old = {f"{group}.{name}": neutral for name, neutral in added.items() if f"{group}.{name}" in new} | old
    return {
        name: f"{old.get(name)} → {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        # New settings of checkpoints and tracking do not affect the training, and new fields of the Trainer come
        # from another version of Lightning, not from the user.
        if old.get(name) != new.get(name)
        and (name in old or not name.startswith(("checkpoint.", "tracking.", "trainer.")))
    }
