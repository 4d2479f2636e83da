"""Optimisers and learning-rate schedules by plain hyperparameters."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_mnist.errors import UsageError
from lit_mnist.models.common.layers import check_choice

OptimizerName = Literal["sgd", "adam", "rmsprop"]
Schedule = Literal["constant", "linear", "cosine", "inverse_time"]


def make_optimizer(parameters: Iterable[Any], hparams: Mapping[str, Any], fused: bool) -> Optimizer:
    """Create the optimiser that `hparams` name, fused if `fused` and torch has a fused version of it."""
    # Weight decay as an L2 penalty in the gradient, as in torch's plain optimisers; AdamW would decouple it.
    shared = {"lr": hparams["lr"], "weight_decay": hparams["weight_decay"]}
    if hparams["optimizer"] == "adam":
        return torch.optim.Adam(parameters, fused=fused, **shared)
    if hparams["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, momentum=hparams["momentum"], fused=fused, **shared)
    # torch has no fused RMSprop (as of 2.15).
    return torch.optim.RMSprop(parameters, momentum=hparams["momentum"], **shared)


def make_schedule(optimizer: Optimizer, schedule: str, warmup: int, total: float, decay: float = 0.0) -> LambdaLR:
    """Create a schedule that raises the learning rate from 0 over `warmup` steps, then follows `schedule`.

    "linear" and "cosine" fall to 0 at step `total`; "inverse_time" is lr / (1 + decay * step), which Keras called
    `decay`. The rate is a function of the step alone, so that a resumed training needs no other state.

    Raises:
        UsageError: The schedule falls to 0, and `total` is not finite.

    """
    if schedule in ("linear", "cosine") and not 0 < total < math.inf:
        raise UsageError(
            f"--model.lr_schedule {schedule} needs an end: set --trainer.max_epochs or --trainer.max_steps"
        )

    def factor(step: int) -> float:
        """The learning rate at optimiser step `step`, counted from 0, as a share of the full rate."""
        # Plus 1: at a learning rate of 0 the first step would change nothing.
        # Linear, up to the full rate at step `warmup`.
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if schedule == "constant":
            return 1.0
        # From the end of the warm-up on, where the rate is lr.
        if schedule == "inverse_time":
            return 1 / (1 + decay * (step - warmup))
        # At most 1: a training that goes on after `total` stays at 0, where the cosine would rise again.
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

    # A factor of each group's own rate: groups with different rates keep their ratio.
    return LambdaLR(optimizer, factor)


def check_optimizer(hparams: Mapping[str, Any]) -> None:
    """Check the optimiser's hyperparameters.

    Raises:
        UsageError: A name is unknown, a value is out of range, or a value has no effect: momentum with adam,
            lr_decay without the schedule inverse_time.

    """
    check_choice("optimizer", hparams["optimizer"], get_args(OptimizerName))
    check_choice("lr_schedule", hparams["lr_schedule"], get_args(Schedule))
    if hparams["lr"] <= 0:
        raise UsageError(f"--model.lr {hparams['lr']} must be above 0")
    if not 0 <= hparams["momentum"] < 1:
        raise UsageError(f"--model.momentum {hparams['momentum']} must lie in [0, 1)")
    for name in ("weight_decay", "warmup_steps", "lr_decay"):
        if hparams[name] < 0:
            raise UsageError(f"--model.{name} {hparams[name]} must not be negative")
    # A value without effect is an error, since it would mislead anyone who compares runs.
    if hparams["momentum"] and hparams["optimizer"] == "adam":
        raise UsageError(
            f"--model.momentum {hparams['momentum']} has no effect on adam: leave it out, or take"
            " --model.optimizer sgd"
        )
    if (hparams["lr_schedule"] == "inverse_time") != (hparams["lr_decay"] > 0):
        raise UsageError(
            f"--model.lr_decay {hparams['lr_decay']} and --model.lr_schedule {hparams['lr_schedule']}: lr_decay is"
            " for the schedule inverse_time, which needs a value above 0"
        )
