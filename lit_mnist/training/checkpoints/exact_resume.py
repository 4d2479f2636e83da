"""Exact resume: when a checkpoint is written, what it contains, and how a Trainer is restored from it.

Lightning saves wherever a callback calls it, and restores each of these places by different rules that are not all
consistent: schedules, validations and epochs are repeated or skipped (PL#20495, PL#17296, PL#18727). Here training
is saved at only one place, the start of a batch, when everything that belongs to the previous step is done. All
random numbers are functions of (seed, epoch, step), so no generator state has to be saved.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lit_mnist.data.randomness import keyed_seed
from lit_mnist.errors import Interrupted
from lit_mnist.signals import SignalWatch
from lit_mnist.training.checkpoints.files import NEXT, STATE, rotate_in
from lit_mnist.training.checkpoints.limits import stop_reason, stopped_otherwise
from lit_mnist.training.configuration import CheckpointArgs
from lit_mnist.training.lightning.ranks import RankConsensus
from lit_mnist.training.lightning.state import (
    batches_that_stepped,
    restore_batches_that_stepped,
    restore_schedule,
)

RATES = ("lr", "initial_lr", "momentum", "weight_decay")
"""Entries of an optimiser's parameter groups that hyperparameters set."""


class ExactResume(Callback):
    """Writes `last.ckpt` regularly, at a signal and at the end, and restores a Trainer to that point.

    Args:
        watch: The watch for signals that end the training.
        often: Steps and minutes between two checkpoints.
        seed: Seed of dropout and of everything else that a model draws from torch's generator.
        best_is_lost: Ignore the best checkpoint that the checkpoint to resume refers to.

    """

    def __init__(self, watch: SignalWatch, often: CheckpointArgs, seed: int, best_is_lost: bool = False) -> None:
        self.watch, self.often, self.seed, self.best_is_lost = watch, often, seed, best_is_lost
        self.folder = Path()
        """Where rank 0 writes the checkpoints."""
        self.before_save: Callable[[], object] = lambda: None
        """Called before each save, to write everything to disk that a resume will not log again."""
        self.upload: Callable[[], object] = lambda: None
        """Called on rank 0 after a save, as often as `often` says, to store a copy of the checkpoint elsewhere."""
        # True while this callback saves; checkpoints of other callbacks are left unchanged.
        self._writing = False
        # True if the last epoch ended before its last batch, by `max_steps` or a stop.
        self._truncated = False
        # Step and time of the last save; no step is saved twice.
        self._saved_step = -1
        self._saved_time = self._uploaded_time = time.monotonic()
        # The state of the checkpoint to resume, until the first batch.
        self._restored: dict[str, Any] | None = None
        # The rates from flags and configuration, for each parameter group of each optimiser.
        self._fresh: list[list[dict[str, Any]]] = []
        self._consensus = RankConsensus()
        self._epoch_seed: int | None = None
        # torch.manual_seed would seed every possible device, and takes a hundred times as long.
        self._seeders: list[Callable[[int], object]] = [torch.default_generator.manual_seed]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the rates of the new optimiser, and restore state that Lightning does not."""
        self._consensus = RankConsensus(trainer)
        # Dropout on a GPU draws from the GPU's generator.
        device = trainer.strategy.root_device
        if device.type != "cpu":
            self._seeders.append(torch.get_device_module(device).manual_seed)
        # Lightning (2.5 to 2.6) loads the optimiser's state after this hook, and with it the rates of the
        # checkpoint.
        self._fresh = [
            [{key: group[key] for key in RATES if key in group} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        if self._restored is not None:
            trainer.should_stop = self._restored["stops"]
            # Lightning's checkpoints do not contain these. Without them, early stopping and checkpoints would not
            # find their monitored metric until it is logged again.
            trainer.callback_metrics.update(self._restored["callback_metrics"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Correct state that Lightning restores wrongly."""
        # The minutes count from here, since the setup may take long.
        self._saved_time = self._uploaded_time = time.monotonic()
        self._consensus.start()
        if self._restored is None:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # The batch that had started when the checkpoint was written is fetched and counted again.
        progress.total.ready = progress.total.completed
        # Lightning does not restore the loader if its length was read before, for example by a schedule.
        loader: Any = trainer.train_dataloader
        loader.load_state_dict({"position": self._restored["position"]})
        self._saved_step = trainer.global_step
        # Flags take precedence over the checkpoint, but only if they have changed: otherwise the checkpoint's
        # rates count, which a schedule may have changed.
        for optimizer, fresh in zip(trainer.optimizers, self._fresh, strict=True):
            for group, rates in zip(optimizer.param_groups, fresh, strict=True):
                group.update(rates if self._restored["rates_differ"] else {**rates, **group})
        for config in trainer.lr_scheduler_configs:
            restore_schedule(config.scheduler, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the flag: training continues after a truncated epoch."""
        self._truncated = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due or a signal was received, and seed the generators for this step."""
        if self._restored is not None:
            restore_batches_that_stepped(trainer, self._restored["batches_that_stepped"])
            self._restored = None
        if batch_idx % trainer.accumulate_grad_batches == 0:  # checkpoints do not contain accumulated gradients
            self._save_if_due(trainer)
        if self._epoch_seed is None or batch_idx == 0:
            # A hash takes several µs, an addition none: so one hash per epoch, to which the step is added.
            self._epoch_seed = keyed_seed(self.seed, "model", trainer.current_epoch, trainer.global_rank)
        for seed in self._seeders:
            seed(self._epoch_seed + batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a truncated epoch is closed, so that a larger `max_steps` can continue in mid-epoch."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # The save at the end of training would treat the epoch as complete and skip its remaining batches.
        self._truncated = progress.current.completed < trainer.num_training_batches
        if self._truncated:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the result of the training."""
        if not self._truncated:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Convert the loops' progress to the start of a batch, and add state that Lightning does not save."""
        if not self._writing:
            return
        # Plain types and tensors on the CPU: checkpoints load with weights_only=True on any machine.
        metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        checkpoint[STATE] = {
            "position": _set_to_batch_start(checkpoint["loops"]["fit_loop"], trainer),
            "batch_size": _batch_size(trainer),
            "world_size": trainer.world_size,
            "stopped_otherwise": stopped_otherwise(trainer),
            "callback_metrics": metrics,
            "batches_that_stepped": batches_that_stepped(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adapt the checkpoint to this Trainer: explicit flags take precedence over the checkpoint."""
        # A checkpoint of another callback has no such state; Lightning restores it by its own rules.
        state = checkpoint.get(STATE)
        if state is None:
            return
        if self.best_is_lost:
            for key in [key for key in checkpoint["callbacks"] if "ModelCheckpoint" in key]:
                del checkpoint["callbacks"][key]
        # Every rate that hyperparameters may set, including `encoder_lr`.
        old, new = checkpoint.get("hyper_parameters", {}), pl_module.hparams
        rates = [name for name in new if name.endswith("lr") or name in RATES]
        self._restored = {**state, "rates_differ": any(old.get(name) != new[name] for name in rates)}
        if not _same_optimizer(old, new):
            rank_zero_warn("another optimiser than the checkpoint's: it starts without a history")
            # Otherwise Lightning would load Adam's moments into SGD without an error.
            checkpoint["optimizer_states"] = []
        if state["world_size"] != trainer.world_size:
            rank_zero_warn(
                f"going on with {trainer.world_size} device(s) what {state['world_size']} began: the result is"
                " equal to rounding, no longer bit for bit"
            )
        self._restored["position"] = _position(checkpoint["loops"]["fit_loop"], state, trainer)
        self._restored["stops"] = stop_reason(checkpoint, trainer.callbacks) is not None  # type: ignore[attr-defined]
        _adapt_callbacks(checkpoint["callbacks"], trainer, goes_on=not self._restored["stops"])

    def _save_if_due(self, trainer: Trainer) -> None:
        """Save if a checkpoint is due.

        Raises:
            Interrupted: a signal has come; the training is saved.

        """
        # Step numbers are the same on all ranks, but clocks and signals are not, so the ranks agree on those
        # first.
        step = trainer.global_step
        since = step - self._saved_step
        every, minutes = self.often.every_n_steps, self.often.every_n_minutes
        received = self.watch.received
        timed = minutes is not None and time.monotonic() - self._saved_time >= 60 * minutes
        if trainer.world_size > 1:
            received, timed = self._consensus.reached(received, timed)
            timed = timed and since > 1  # the ranks may have agreed on a checkpoint in the previous step
        # By step number, not by distance, so that a resumed training saves at the same steps as an uninterrupted
        # one.
        due = timed or (every is not None and step > 0 and step % every == 0)
        if since and (due or received is not None):
            self._save(trainer)
        if received is not None:
            raise Interrupted(received)

    def _save(self, trainer: Trainer) -> None:
        # The journal is flushed first, so that every step before the checkpoint is logged.
        self.before_save()
        self._writing = True
        try:
            # Under a separate name first, so that the previous checkpoint stays in place if this fails.
            trainer.save_checkpoint(self.folder / NEXT, weights_only=False)
        finally:
            self._writing = False
        # All ranks take part in `save_checkpoint`; only rank 0 writes a file.
        if trainer.is_global_zero:
            rotate_in(self.folder)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        minutes = self.often.upload_every_n_minutes
        if (
            trainer.is_global_zero
            and minutes is not None
            and self._saved_time - self._uploaded_time >= 60 * minutes
        ):
            self.upload()
            self._uploaded_time = self._saved_time


def _set_to_batch_start(loops: dict[str, Any], trainer: Trainer) -> int:
    """Set the loops' progress to the start of a batch; return the number of batches done in the epoch."""
    # Lightning counts `ready`, `started`, `processed` and `completed` of each loop, in this epoch and in total.
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    done: int = batches["current"]["completed"]
    if done >= trainer.num_training_batches:  # the epoch is complete, so this is the next one's first batch
        done = 0
        for kind in ("step", "zero_grad"):
            current = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"][kind]["current"]
            current.update(dict.fromkeys(current, 0))
    elif epochs["current"]["processed"] == epochs["current"]["ready"]:  # a truncated epoch, which is not complete
        for counts in epochs.values():
            # Lightning has counted the epoch as processed, although batches are left.
            counts["processed"] -= 1
    batches["current"] = {"ready": done + 1, "started": done, "processed": done, "completed": done}
    batches["total"]["ready"] = batches["total"]["completed"] + 1
    batches["is_last_batch"] = False
    # Reset the counts of the last validation; otherwise a resumed training would skip part of the next one.
    for counts in (loops["epoch_loop.val_loop.batch_progress"][kind] for kind in ("total", "current")):
        counts.update(dict.fromkeys(counts, 0))
    return done


def _position(loops: dict[str, Any], state: dict[str, Any], trainer: Trainer) -> int:
    """Return the number of batches done in the epoch, converted if the batch size has changed."""
    old, new = state["batch_size"], _batch_size(trainer)
    if old == new:
        return int(state["position"])
    done = int(state["position"] * old // new)
    loops["epoch_loop.batch_progress"]["current"] = {
        "ready": done + 1, "started": done, "processed": done, "completed": done
    }  # fmt: skip
    return done


def _adapt_callbacks(states: dict[str, Any], trainer: Trainer, goes_on: bool) -> None:
    """Adapt the callbacks' saved states to this configuration and this folder.

    Args:
        states: The checkpoint's states, by the callbacks' keys.
        trainer: Its callbacks are about to load them.
        goes_on: True if training continues, that is, early stopping has not ended it.

    """
    # Only values that the new configuration sets are changed; counts and best values are kept.
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if state is None:
            continue
        if isinstance(callback, EarlyStopping):
            # Lightning would restore the old patience together with the count, so that a new flag had no effect.
            state["patience"] = callback.patience
            if goes_on:
                state["stopped_epoch"] = 0
                state.pop("stopping_reason", None)
                state.pop("stopping_reason_message", None)
        elif isinstance(callback, ModelCheckpoint):
            # The project may have been moved: use the current path of the run's folder.
            folder = Path(str(callback.dirpath))
            state["dirpath"] = str(folder)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                if state[key]:
                    state[key] = str(folder / Path(state[key]).name)
            best = state["best_k_models"].items()
            state["best_k_models"] = {str(folder / Path(path).name): score for path, score in best}


def _batch_size(trainer: Trainer) -> int:
    """Return the images of a step, over all devices."""
    return int(trainer.datamodule.hparams["batch_size"])  # type: ignore[attr-defined]


def _same_optimizer(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return True if the optimiser of hyperparameters `new` can take over the state of that of `old`."""
    if old.get("optimizer") != new.get("optimizer"):
        return False
    # RMSprop has a momentum buffer only if it has a momentum.
    return new.get("optimizer") != "rmsprop" or bool(old.get("momentum")) == bool(new.get("momentum"))
