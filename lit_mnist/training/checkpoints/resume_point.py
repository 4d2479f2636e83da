"""Where `fit --resume` goes on: the run, its checkpoint, and what is left to do."""

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from lit_mnist.errors import UsageError, UserError
from lit_mnist.models import LitModel
from lit_mnist.tracking.folder import CONFIG, read_record, upgrade_config
from lit_mnist.tracking.queries.lookup import FoundRun, fetch_folder, find_unfinished, resolve_run
from lit_mnist.training.checkpoints.files import BEST, LAST, NEXT, PREVIOUS, STATE, read_checkpoint

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that loads and fits the model."""

    path: Path
    content: dict[str, Any]
    best_is_lost: bool = False
    """True if `best.ckpt` is useless and will not be made again: the best is counted from this checkpoint on."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.content["global_step"])


@dataclass(frozen=True)
class ResumePoint:
    """A run to resume and where in it: found once, then passed on as it is."""

    run: FoundRun
    folder: Path
    status: str
    """The run's status before it is resumed."""
    checkpoint: Checkpoint | None
    """None if the run was interrupted before its first checkpoint."""

    @property
    def step(self) -> int:
        """The step from which training goes on."""
        return self.checkpoint.step if self.checkpoint else 0

    def discard(self) -> None:
        """Remove the run's folder if it was only fetched for this resume, and nothing was done with it."""
        # Read again: another process may have taken the run over since it was found, and work in this folder.
        if read_record(self.folder) is None:
            shutil.rmtree(self.folder, ignore_errors=True)


def find_run_to_resume(wanted: str, offline: bool, run_of_rank_0: str | None = None) -> FoundRun:
    """Find the run `wanted` and make sure that its folder has its configuration and checkpoints.

    What a finished run has left in the store is fetched into its folder.

    Args:
        wanted: A run's id, its beginning, or `last`: the newest unfinished run that belongs to no sweep.
        offline: Ask no store.
        run_of_rank_0: The run, if rank 0 has started this process and found it already.

    Raises:
        UserError: there is no such run, or it has no configuration.

    """
    if wanted == "last":
        wanted = run_of_rank_0 or find_unfinished(offline)
    run = resolve_run(wanted, offline=offline or run_of_rank_0 is not None)
    if not (run.folder / CONFIG).exists():
        fetch_folder(run, (CONFIG,), (CHECKPOINTS,))
    if not (run.folder / CONFIG).exists():
        raise UserError(f"run {run.id} has no {CONFIG}: `lit-mnist fit` did not make it")
    upgrade_config(run.folder / CONFIG)
    return run


def find_resume_point(run: FoundRun, model: LitModel, sent: Mapping[str, Any] | None = None) -> ResumePoint:
    """Return where `run` goes on: from its newest good checkpoint that fits `model`.

    Args:
        run: The run to resume.
        model: The model to be trained.
        sent: What rank 0 has sent to this rank, with the checkpoint that it has chosen; see `point_to_send`.

    Raises:
        UserError: there are checkpoints, and none of them will do, or the run is finished and has kept none.

    """
    folder = run.folder / CHECKPOINTS
    if sent is None:
        checkpoint = choose_checkpoint(folder, model)
        if checkpoint is None and run.status == "FINISHED":  # it would start anew, and replace what it has logged
            raise UserError(f"run {run.id} is finished and kept no checkpoint to resume from (keep_checkpoints)")
    elif (path := folder / LAST).exists():
        checkpoint = Checkpoint(path, read_checkpoint(path, model), sent["best_is_lost"])
    else:
        checkpoint = None
    return ResumePoint(run, run.folder, run.status, checkpoint)


def point_to_send(point: ResumePoint | None, done: bool) -> tuple[dict[str, Any], dict[str, Path]]:
    """What rank 0 tells the ranks that were launched beside it, and the files that they need.

    Args:
        point: Where training goes on; None for a new run.
        done: There is nothing left to train.

    """
    if point is None or done:
        return {"run": None, "done": done}, {}
    files, lost = {CONFIG: point.folder / CONFIG}, False
    if point.checkpoint is not None:
        files[f"{CHECKPOINTS}/{LAST}"], lost = point.checkpoint.path, point.checkpoint.best_is_lost
    return {"run": point.run.id, "done": False, "best_is_lost": lost}, files


def choose_checkpoint(folder: Path, model: LitModel) -> Checkpoint | None:
    """Return the checkpoint in `folder` to go on from, or None if there is none.

    It is the newest that loads and fits `model`; one that does not is named in a warning. If `best.ckpt` is
    damaged, or older than the best one that this checkpoint refers to, an older checkpoint is taken, provided that
    the training from there will make that best again.

    Raises:
        UserError: there are checkpoints, and none of them will do.

    """
    defects: list[str] = []

    def good_ones() -> Iterator[Checkpoint]:
        """The checkpoints that load, newest first; read one by one, since the first is mostly good."""
        # NEXT is there only if a process was killed between its two renames, and then it is the newest.
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
    best_score = _best_score(newest.content)
    if best_score is None:
        return newest
    try:
        best = read_checkpoint(folder / BEST, model)
        # One of a later step is made again in the same way. Of two that were uploaded, the best may be the older.
        if best["global_step"] < newest.step and _best_score(best) not in (None, best_score):
            raise UserError(f"{folder / BEST} is older than the best checkpoint of {newest.path.name}")
        return newest
    except UserError as error:
        lost = error
    # The best of the older checkpoint is another one: training from there will reach and save the lost best again.
    older = next(good, None)
    if older is not None and _best_score(older.content) != best_score:
        warnings.warn(f"{lost}; going on from {older.path.name}, which makes it again", stacklevel=2)
        return older
    warnings.warn(f"{lost}; the best checkpoint will be the best from here on", stacklevel=2)
    return replace(newest, best_is_lost=True)


def _best_score(content: Mapping[str, Any]) -> float | None:
    """Return the monitored value of the `best.ckpt` that a checkpoint refers to, or that it is."""
    for state in content["callbacks"].values():
        if Path(str(state.get("best_model_path", ""))).name == BEST:
            return float(state["best_model_score"])
    return None


def config_diff(former: Path, config: str) -> dict[str, str]:
    """Return how the configuration `config` (YAML) differs from that in the file `former`: name to `old → new`."""

    def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Dotted names as on the command line."""
        for key, value in fields.items():
            # The files that were named on the command line; what they said is in the other fields.
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
    return {
        name: f"{old.get(name)} → {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        # A setting of the checkpoints that an earlier version did not have changes nothing in the training.
        if old.get(name) != new.get(name) and (name in old or not name.startswith("checkpoint."))
    }


def nothing_left(checkpoint: Mapping[str, Any], trainer: Trainer, model: LightningModule) -> str | None:
    """Return why a training from `checkpoint` would end at once, or None if it would not.

    Args:
        checkpoint: The content of the checkpoint to resume.
        trainer: Its limits and callbacks decide, not those that the checkpoint was written with.
        model: Has callbacks of its own, which the Trainer does not know yet.

    Raises:
        UsageError: more epochs are trained than are asked for.

    """
    step = checkpoint["global_step"]
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer.max_steps != -1 and step >= trainer.max_steps:
        return f"at step {step:,} of {trainer.max_steps:,}"
    if trainer.max_epochs not in (None, -1) and epochs >= trainer.max_epochs:
        if epochs > trainer.max_epochs:
            raise UsageError(f"--trainer.max_epochs {trainer.max_epochs}: {epochs} epochs are trained already")
        return f"at epoch {epochs} of {trainer.max_epochs}"
    if epochs < (trainer.min_epochs or 0) or step < (trainer.min_steps or 0):
        return None
    own = model.configure_callbacks()
    callbacks = [*trainer.callbacks, *(own if isinstance(own, Sequence) else [own])]  # type: ignore[attr-defined]
    reason = stop_reason(checkpoint, callbacks)
    return reason and f"{reason} at step {step:,}"


def stop_reason(checkpoint: Mapping[str, Any], callbacks: Iterable[Callback]) -> str | None:
    """Return why training from `checkpoint` stops early by the limits of `callbacks`, or None if it goes on.

    A time limit and early stopping are decided anew, since their limits may have been raised. Whatever else has
    stopped the training, such as the pruner of a sweep, has stopped it for good.

    Args:
        checkpoint: The content of the checkpoint to resume.
        callbacks: Those of the new Trainer, before they are given their states.

    """
    state, has_limits = checkpoint[STATE], False
    for callback in callbacks:
        has_limits |= isinstance(callback, Timer | EarlyStopping)
        saved = checkpoint["callbacks"].get(callback.state_key)
        if saved is None:
            continue
        if isinstance(callback, Timer):
            limit = callback.time_remaining()  # all of it: this Timer has not started
            if limit is not None and saved["time_elapsed"][RunningStage.TRAINING.value] >= limit:
                shown = timedelta(seconds=round(limit))
                return f"its time limit (--trainer.max_time) of {shown} is reached"
        elif isinstance(callback, EarlyStopping):
            value = state["callback_metrics"].get(callback.monitor)
            if _stops(callback, saved["wait_count"], value):
                return f"stopped early by {callback.monitor} (patience {callback.patience})"
    # Checkpoints of earlier versions say only `should_stop`. If there are limits, the loop above has decided.
    stopped = state.get("stopped_otherwise", state.get("should_stop", False) and not has_limits)
    return "stopped early" if stopped else None


def stopped_otherwise(trainer: Trainer) -> bool:
    """Return True if anything but a time limit or early stopping has asked the Trainer to stop."""
    if not trainer.should_stop:
        return False
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer):
            remaining = callback.time_remaining()
            if remaining is not None and remaining <= 0:
                return False
        elif isinstance(callback, EarlyStopping):
            value = trainer.callback_metrics.get(callback.monitor)
            if _stops(callback, callback.wait_count, value):
                return False
    return True


def _stops(callback: EarlyStopping, wait_count: int, value: Tensor | None) -> bool:
    """Return True if `callback` stops a training after `wait_count` values without progress, `value` the last."""
    if wait_count > 0 and wait_count >= callback.patience:  # with patience 0, a value that is better has count 0
        return True
    if value is None:
        return False
    value = value.cpu()
    if callback.check_finite and not torch.isfinite(value):
        return True
    better, threshold, worst = callback.monitor_op, callback.stopping_threshold, callback.divergence_threshold
    return bool(
        (threshold is not None and better(value, threshold)) or (worst is not None and better(-value, -worst))
    )
