"""What a checkpoint says of a training's progress, written in one form and fitted to the Trainer that reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


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
    """How many of the epoch's batches are done; where they have another size now, for as many pictures."""
    old, new = state["batch_size"], batch_size(trainer)
    if old == new:
        return int(state["position"])
    done = int(state["position"] * old // new)
    loops["epoch_loop.batch_progress"]["current"] = {
        "ready": done + 1, "started": done, "processed": done, "completed": done
    }  # fmt: skip
    return done


def fit_callbacks(states: dict[str, Any], trainer: Trainer) -> None:
    """Let the callbacks' `states` be those of this configuration and this folder."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if state is None:
            continue
        if isinstance(callback, EarlyStopping):
            state["patience"] = callback.patience
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
    """Pictures a step, over all devices."""
    return int(trainer.datamodule.hparams["batch_size"])  # type: ignore[attr-defined]


def same_optimizer(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the optimiser of hyperparameters `new` can go on from the state of that of `old`."""
    if old.get("optimizer") != new.get("optimizer"):
        return False
    return new.get("optimizer") != "rmsprop" or bool(old.get("momentum")) == bool(new.get("momentum"))
