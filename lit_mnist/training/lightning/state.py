"""Parts of a Trainer's state that Lightning restores wrongly or not at all."""

from typing import Any

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR


def batches_that_stepped(trainer: Trainer) -> int:
    """Number of batches of the whole fit that ended in an optimiser step; Lightning's x axis for `self.log`."""
    # Not `global_step`, which counts the steps of all optimisers.
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def restore_batches_that_stepped(trainer: Trainer, count: int) -> None:
    """Set the counter: after a checkpoint in mid-epoch, Lightning restores it before it resets it."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = count


def restore_schedule(schedule: Any, step: int) -> None:
    """Set a learning-rate schedule to its value at `step`, independent of the checkpoint's schedule.

    This works only for a LambdaLR, which is a function of the step; others stay as Lightning restored them.
    """
    # All schedules of this project are of this class, see `make_schedule`.
    if not isinstance(schedule, LambdaLR):
        return
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    # Schedulers count calls in `last_epoch`, which are steps here.
    schedule.last_epoch = step
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    # `schedule.step()` would set this too, but warns if no optimiser step came before it.
    schedule._last_lr = [group["lr"] for group in groups]
