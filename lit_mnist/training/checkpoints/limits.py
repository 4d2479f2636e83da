"""Whether a training that is resumed has anything left to do, or has reached a limit."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from lit_mnist.errors import UsageError
from lit_mnist.training.checkpoints.files import STATE


def nothing_left(checkpoint: Mapping[str, Any], trainer: Trainer, model: LightningModule) -> str | None:
    """Return why a training from `checkpoint` would end at once, or None if it would not.

    Args:
        checkpoint: The content of the checkpoint to resume.
        trainer: Its limits and callbacks decide, not those that the checkpoint was written with.
        model: Has callbacks of its own, which the Trainer does not know yet.

    Raises:
        UsageError: more epochs are trained than are asked for.

    """
    # In Lightning's order: steps, then epochs, then the minimum that early stopping has to respect.
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
    # Lightning adds these at the start of `fit`, which is too late for this question.
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
    # Each callback's own count, against its new limit: a larger patience or more time lets the training go on.
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
    # Asked when a checkpoint is written: later nobody knows who has stopped the training.
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
    # The same conditions as in EarlyStopping: patience, a value that is not finite, and the two thresholds.
    value = value.cpu()
    if callback.check_finite and not torch.isfinite(value):
        return True
    better, threshold, worst = callback.monitor_op, callback.stopping_threshold, callback.divergence_threshold
    return bool(
        (threshold is not None and better(value, threshold)) or (worst is not None and better(-value, -worst))
    )
