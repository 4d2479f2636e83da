"""Exact resume: where a checkpoint is written, what is in it, and how a Trainer takes it up again.

Lightning saves wherever a callback asks it to, and restores each of those places by rules of its own, not all of
which meet: schedules, validations and epochs are done twice or left out. Here training is saved at one place only,
at the start of a batch, when all that belongs to the step before is done. What is drawn at random is a function of
(seed, epoch, step), so that no generator's history has to be kept.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.lr_scheduler import LambdaLR

from lit_mnist.data.randomness import keyed_seed
from lit_mnist.errors import Interrupted
from lit_mnist.signals import SignalWatch
from lit_mnist.training.checkpoints.files import NEXT, STATE, rotate_in
from lit_mnist.training.checkpoints.saved_state import (
    at_batch_start,
    batch_size,
    fit_callbacks,
    fit_position,
    same_optimizer,
    stop_reason,
    stopped_otherwise,
)
from lit_mnist.training.configuration import CheckpointArgs
from lit_mnist.training.lightning.ranks import RankConsensus

RATES = ("lr", "initial_lr", "momentum", "weight_decay")
"""What an optimiser's parameter groups are set to by hyperparameters."""


class ExactResume(Callback):
    """Writes `last.ckpt` every so often, at a signal and at the end, and puts a Trainer back to that point.

    Args:
        watch: Where signals are noted.
        often: Steps and minutes between two checkpoints.
        seed: Of dropout, and of whatever else a model draws from torch's generator.

    """

    def __init__(self, watch: SignalWatch, often: CheckpointArgs, seed: int) -> None:
        self.watch, self.often, self.seed = watch, often, seed
        self.folder = Path()
        """Where rank 0 writes the checkpoints."""
        self.before_save: Callable[[], object] = lambda: None
        """Called before each save, for what has to be on disk by then."""
        self._writing = False
        self._truncated = False
        self._saved_step = -1
        self._saved_time = time.monotonic()
        self._restored: dict[str, Any] | None = None
        self._fresh: list[list[dict[str, Any]]] = []
        self._agreement = RankConsensus()
        self._epoch_seed: int | None = None
        # torch.manual_seed seeds every device there might be, and takes a hundred times as long.
        self._seeders: list[Callable[[int], object]] = [torch.default_generator.manual_seed]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what a new optimiser is set to, and restore what Lightning resets before it restores."""
        self._agreement = RankConsensus(trainer)
        device = trainer.strategy.root_device
        if device.type != "cpu":
            self._seeders.append(torch.get_device_module(device).manual_seed)
        self._fresh = [
            [{key: group[key] for key in RATES if key in group} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        if self._restored is not None:
            trainer.should_stop = self._restored["stops"]
            trainer._logger_connector._callback_metrics.update(self._restored["callback_metrics"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mend what Lightning's restore leaves wrong."""
        self._saved_time = time.monotonic()
        self._agreement.start()
        if self._restored is None:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        progress.total.ready = progress.total.completed
        # Lightning does so only where nothing has asked for the number of batches before, as a schedule does.
        loader: Any = trainer.train_dataloader
        loader.load_state_dict({"position": self._restored["position"]})
        self._saved_step = trainer.global_step
        for optimizer, fresh in zip(trainer.optimizers, self._fresh, strict=True):
            for group, rates in zip(optimizer.param_groups, fresh, strict=True):
                group.update(rates if self._restored["rates_differ"] else {**rates, **group})
        for config in trainer.lr_scheduler_configs:
            _set_schedule(config.scheduler, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch after a truncated one: training did not end with that."""
        self._truncated = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time or somebody wants training to end, and seed what the step draws."""
        if self._restored is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._restored["batches_that_stepped"]
            self._restored = None
        if batch_idx % trainer.accumulate_grad_batches == 0:  # gradients in the making are not in a checkpoint
            self._heed(trainer)
        self._seed(trainer, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a truncated epoch is closed, so that more steps can go on in the middle of it."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self._truncated = progress.current.completed < trainer.num_training_batches
        if self._truncated:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what training has come to."""
        if not self._truncated:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the loops' progress into the one form that is restored, and add what Lightning does not keep."""
        if not self._writing:
            return
        metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        checkpoint[STATE] = {
            "position": at_batch_start(checkpoint["loops"]["fit_loop"], trainer),
            "batch_size": batch_size(trainer),
            "world_size": trainer.world_size,
            "stopped_otherwise": stopped_otherwise(trainer),
            "callback_metrics": metrics,
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Fit the checkpoint to this Trainer: explicit flags beat what it holds."""
        state = checkpoint.get(STATE)
        if state is None:
            return
        old, new = checkpoint.get("hyper_parameters", {}), pl_module.hparams
        rates = [name for name in new if name.endswith("lr") or name in RATES]
        self._restored = {**state, "rates_differ": any(old.get(name) != new[name] for name in rates)}
        if not same_optimizer(old, new):
            rank_zero_warn("another optimiser than the checkpoint's: it starts without a history")
            checkpoint["optimizer_states"] = []
        if state["world_size"] != trainer.world_size:
            rank_zero_warn(
                f"going on with {trainer.world_size} device(s) what {state['world_size']} began: the result is"
                " equal to rounding, no longer bit for bit"
            )
        self._restored["position"] = fit_position(checkpoint["loops"]["fit_loop"], state, trainer)
        self._restored["stops"] = stop_reason(checkpoint, trainer.callbacks) is not None  # type: ignore[attr-defined]
        fit_callbacks(checkpoint["callbacks"], trainer, goes_on=not self._restored["stops"])

    def _heed(self, trainer: Trainer) -> None:
        step = trainer.global_step
        since = step - self._saved_step
        every, minutes = self.often.every_n_steps, self.often.every_n_minutes
        received = self.watch.received
        timed = minutes is not None and time.monotonic() - self._saved_time >= 60 * minutes
        if trainer.world_size > 1:
            received, timed = self._agreement.reached(received, timed)
            timed = timed and since > 1  # what the ranks agreed on may be the checkpoint of the step before
        due = timed or (every is not None and step > 0 and step % every == 0)
        if since and (due or received is not None):
            self._save(trainer)
        if received is not None:
            raise Interrupted(received)

    def _save(self, trainer: Trainer) -> None:
        self.before_save()
        self._writing = True
        try:
            # Under its own name first, so that the one before is whole and in place whatever happens.
            trainer.save_checkpoint(self.folder / NEXT, weights_only=False)
        finally:
            self._writing = False
        if trainer.is_global_zero:
            rotate_in(self.folder)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def _seed(self, trainer: Trainer, batch_idx: int) -> None:
        if self._epoch_seed is None or batch_idx == 0:
            self._epoch_seed = keyed_seed(self.seed, "model", trainer.current_epoch, trainer.global_rank)
        for seed in self._seeders:
            seed(self._epoch_seed + batch_idx)


def _set_schedule(schedule: Any, step: int) -> None:
    """Put `schedule` to where it is at `step`, whatever it was when the checkpoint was written."""
    if not isinstance(schedule, LambdaLR):
        return
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    schedule.last_epoch = step
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    schedule._last_lr = [group["lr"] for group in groups]
