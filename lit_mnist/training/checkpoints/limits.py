"""Whether a resumed training has anything left to do, or has reached a limit."""

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
        trainer: The new Trainer; its limits and callbacks count, not those of the checkpoint's Trainer.
        model: The model, which has callbacks that have not been added to the Trainer yet.

    Raises:
        UsageError: the checkpoint has more epochs than `trainer.max_epochs`.

    """
    # In Lightning's order: steps, then epochs, then the minimum before early stopping.
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
    """Return why training from `checkpoint` would stop early, or None if it continues.

    Time limits and early stopping are evaluated again, since their limits may have been raised. A stop for any
    other reason, such as the pruner of a sweep, is final.

    Args:
        checkpoint: The content of the checkpoint to resume.
        callbacks: Those of the new Trainer, before their states are loaded.

    """
    # Each callback's stored count against its new limit: with more patience or time, training continues.
    state, has_limits = checkpoint[STATE], False
    for callback in callbacks:
        has_limits |= isinstance(callback, Timer | EarlyStopping)
        saved = checkpoint["callbacks"].get(callback.state_key)
        if saved is None:
            continue
        if isinstance(callback, Timer):
            limit = callback.time_remaining()  # the whole limit, since this Timer has not started
            if limit is not None and saved["time_elapsed"][RunningStage.TRAINING.value] >= limit:
                shown = timedelta(seconds=round(limit))
                return f"its time limit (--trainer.max_time) of {shown} is reached"
        elif isinstance(callback, EarlyStopping):
            value = state["callback_metrics"].get(callback.monitor)
            if _stops(callback, saved["wait_count"], value):
                return f"stopped early by {callback.monitor} (patience {callback.patience})"
    # Checkpoints of earlier versions only have `should_stop`. If there are limits, the loop above has decided.
    stopped = state.get("stopped_otherwise", state.get("should_stop", False) and not has_limits)
    return "stopped early" if stopped else None


def stopped_otherwise(trainer: Trainer) -> bool:
    """Return True if something other than a time limit or early stopping has asked the Trainer to stop."""
    # Called when a checkpoint is written, since the reason cannot be found out later.
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
    """Return True if `callback` stops a training whose last `wait_count` values, up to `value`, were no better."""
    if wait_count > 0 and wait_count >= callback.patience:  # with patience 0, a better value has count 0
        return True
    if value is None:
        return False
    # The same conditions as in EarlyStopping: patience, a non-finite value, and the two thresholds.
    value = value.cpu()
    if callback.check_finite and not torch.isfinite(value):
        return True
    better, threshold, worst = callback.monitor_op, callback.stopping_threshold, callback.divergence_threshold
    return bool(
        (threshold is not None and better(value, threshold)) or (worst is not None and better(-value, -worst))
    )
