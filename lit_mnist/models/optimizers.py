"""torch.optim by plain hyperparameters, and learning rates as functions of the step alone."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_mnist.errors import UsageError


def make_optimizer(parameters: Iterable[Any], hparams: Mapping[str, Any], fused: bool) -> Optimizer:
    """The optimiser that `hparams` names, fused where torch has it so and `fused` allows it."""
    shared = {"lr": hparams["lr"], "weight_decay": hparams["weight_decay"]}
    if hparams["optimizer"] == "adam":
        return torch.optim.Adam(parameters, fused=fused, **shared)
    if hparams["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, momentum=hparams["momentum"], fused=fused, **shared)
    return torch.optim.RMSprop(parameters, momentum=hparams["momentum"], **shared)


def make_schedule(optimizer: Optimizer, schedule: str, warmup: int, total: float) -> LambdaLR:
    """The learning rate by steps: up from 0 over `warmup` of them, then as `schedule` says down to 0 at `total`.

    Raises:
        UsageError: a schedule that goes down, for a training without an end.

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
    """Refuse rates out of range, and a momentum where there is none to set.

    Raises:
        UsageError: names the flag.

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
