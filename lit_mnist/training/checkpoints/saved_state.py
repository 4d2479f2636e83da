"""What a checkpoint says of a training's progress, written in one form and fitted to the Trainer that reads it."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from lit_mnist.training.checkpoints.files import STATE


def at_batch_start(loops: dict[str, Any], trainer: Trainer) -> int:
    """Write the loops' progress as it is at the start of a batch; returns how many of the epoch are done."""
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    done: int = batches["current"]["completed"]
    if done >= trainer.num_training_batches:  # training's end: the next epoch's first batch
        done = 0
        for kind in ("step", "zero_grad"):
            current = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"][kind]["current"]
            current.update(dict.fromkeys(current, 0))
    elif epochs["current"]["processed"] == epochs["current"]["ready"]:  # truncated: the epoch is not over
        for counts in epochs.values():
            counts["processed"] -= 1
    batches["current"] = {"ready": done + 1, "started": done, "processed": done, "completed": done}
    batches["total"]["ready"] = batches["total"]["completed"] + 1
    batches["is_last_batch"] = False
    for counts in (loops["epoch_loop.val_loop.batch_progress"][kind] for kind in ("total", "current")):
        counts.update(dict.fromkeys(counts, 0))
    return done


def fit_position(loops: dict[str, Any], state: dict[str, Any], trainer: Trainer) -> int:
    """How many of the epoch's batches are done; where they have another size now, for as many images."""
    old, new = state["batch_size"], batch_size(trainer)
    if old == new:
        return int(state["position"])
    done = int(state["position"] * old // new)
    loops["epoch_loop.batch_progress"]["current"] = {
        "ready": done + 1, "started": done, "processed": done, "completed": done
    }  # fmt: skip
    return done


def stop_reason(checkpoint: Mapping[str, Any], callbacks: Iterable[Callback]) -> str | None:
    """Why training from `checkpoint` is to stop early by what `callbacks` ask for now; None where it is not.

    A time limit and early stopping are decided anew, since their limits may have been raised. Whatever else has
    stopped the training, such as the pruner of a sweep, has stopped it for good.
    """
    state, has_limits = checkpoint[STATE], False
    for callback in callbacks:
        has_limits |= isinstance(callback, Timer | EarlyStopping)
        saved = checkpoint["callbacks"].get(callback.state_key)
        if saved is None:
            continue
        if isinstance(callback, Timer):
            elapsed = saved["time_elapsed"][RunningStage.TRAINING.value]
            if callback._duration is not None and elapsed >= callback._duration:
                limit = timedelta(seconds=round(callback._duration))
                return f"its time limit (--trainer.max_time) of {limit} is reached"
        elif isinstance(callback, EarlyStopping):
            value = state["callback_metrics"].get(callback.monitor)
            if _stops(callback, saved["wait_count"], value):
                return f"stopped early by {callback.monitor} (patience {callback.patience})"
    # Earlier checkpoints say only that training was to stop. With limits, these have just been asked anew.
    stopped = state.get("stopped_otherwise", state.get("should_stop", False) and not has_limits)
    return "stopped early" if stopped else None


def stopped_otherwise(trainer: Trainer) -> bool:
    """Whether training is to stop by the word of anything but a time limit and early stopping."""
    if not trainer.should_stop:
        return False
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer):
            if callback._duration is not None and callback.time_elapsed() >= callback._duration:
                return False
        elif isinstance(callback, EarlyStopping):
            value = trainer.callback_metrics.get(callback.monitor)
            if _stops(callback, callback.wait_count, value):
                return False
    return True


def _stops(callback: EarlyStopping, wait_count: int, value: Tensor | None) -> bool:
    """Whether `callback` stops a training after `wait_count` values that were no better, `value` the last."""
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


def fit_callbacks(states: dict[str, Any], trainer: Trainer, goes_on: bool) -> None:
    """Let the callbacks' `states` be those of this configuration and this folder.

    Args:
        states: Those of a checkpoint, by the callbacks' keys.
        trainer: Whose callbacks are about to load them.
        goes_on: Whether training goes on; then early stopping has not stopped it yet.

    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if state is None:
            continue
        if isinstance(callback, EarlyStopping):
            state["patience"] = callback.patience
            if goes_on:
                state["stopped_epoch"] = 0
                state.pop("stopping_reason", None)
                state.pop("stopping_reason_message", None)
        elif isinstance(callback, ModelCheckpoint):
            _move(state, Path(str(callback.dirpath)))


def _move(state: dict[str, Any], folder: Path) -> None:
    """Let a ModelCheckpoint's state speak of `folder`, wherever it was written: projects move."""
    state["dirpath"] = str(folder)
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if state[key]:
            state[key] = str(folder / Path(state[key]).name)
    state["best_k_models"] = {
        str(folder / Path(path).name): score for path, score in state["best_k_models"].items()
    }


def batch_size(trainer: Trainer) -> int:
    """Images a step, over all devices."""
    return int(trainer.datamodule.hparams["batch_size"])  # type: ignore[attr-defined]


def same_optimizer(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the optimiser of hyperparameters `new` can go on from the state of that of `old`."""
    if old.get("optimizer") != new.get("optimizer"):
        return False
    return new.get("optimizer") != "rmsprop" or bool(old.get("momentum")) == bool(new.get("momentum"))
