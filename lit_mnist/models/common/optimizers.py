"""Optimisers and learning-rate schedules by plain hyperparameters."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_mnist.errors import UsageError


def make_optimizer(parameters: Iterable[Any], hparams: Mapping[str, Any], fused: bool) -> Optimizer:
    """Create the optimiser that `hparams` name, fused if `fused` and torch has a fused version of it."""
    shared = {"lr": hparams["lr"], "weight_decay": hparams["weight_decay"]}
    if hparams["optimizer"] == "adam":
        return torch.optim.Adam(parameters, fused=fused, **shared)
    if hparams["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, momentum=hparams["momentum"], fused=fused, **shared)
    # torch has no fused RMSprop (as of 2.15).
    return torch.optim.RMSprop(parameters, momentum=hparams["momentum"], **shared)


def make_schedule(optimizer: Optimizer, schedule: str, warmup: int, total: float) -> LambdaLR:
    """Create a schedule that raises the learning rate from 0 over `warmup` steps, then follows `schedule`.

    "linear" and "cosine" fall to 0 at step `total`. The rate is a function of the step alone, so that a resumed
    training needs no other state.

    Raises:
        UsageError: The schedule falls, and `total` is not finite.

    """
    if schedule != "constant" and not 0 < total < math.inf:
        raise UsageError(
            f"--model.lr_schedule {schedule} needs an end: set --trainer.max_epochs or --trainer.max_steps"
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, factor)


def check_optimizer(hparams: Mapping[str, Any]) -> None:
    """Check the optimiser's hyperparameters.

    Raises:
        UsageError: A value is out of range, or momentum is given for adam, which has none.

    """
    if hparams["lr"] <= 0:
        raise UsageError(f"--model.lr {hparams['lr']} must be above 0")
    if not 0 <= hparams["momentum"] < 1:
        raise UsageError(f"--model.momentum {hparams['momentum']} must lie in [0, 1)")
    for name in ("weight_decay", "warmup_steps"):
        if hparams[name] < 0:
            raise UsageError(f"--model.{name} {hparams[name]} must not be negative")
    if hparams["momentum"] and hparams["optimizer"] == "adam":
        raise UsageError(
            f"--model.momentum {hparams['momentum']} has no effect on adam: leave it out, or take"
            " --model.optimizer sgd"
        )
