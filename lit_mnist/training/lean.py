"""The training step without the hooks that nobody defines.

Of what Lightning adds to a small network's step, most is calling hooks that are empty, each through layers of
profiling contexts. The dispatch here calls what a plain float32 step on one device consists of, in Lightning's
order, and leaves everything else to Lightning.
"""

import os
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

_NOTHING = nullcontext()
_CALLBACK_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
_MODULE_HOOKS = (
    *_CALLBACK_HOOKS,
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
)


class QuietProfiler(PassThroughProfiler):
    """Profiles nothing, without a generator for each of the forty times a step that it is asked to."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context that does nothing."""
        return _NOTHING


def hide_no_gpu() -> None:
    """Spare each optimizer step a search for GPUs where there are none: torch asks the driver anew every time."""
    if not torch.cuda.is_available():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def make_lean(trainer: Trainer, model: LightningModule) -> bool:
    """Give `trainer` the short step where it is equal to Lightning's for `model`; returns whether it was."""
    if not _is_plain(trainer, model):
        return False
    trainer.fit_loop.epoch_loop.automatic_optimization = _LeanOptimization(trainer)
    return True


class _LeanOptimization(_AutomaticOptimization):
    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> dict[str, Any]:
        if self._skip_backward or self.trainer.accumulate_grad_batches != 1:  # a callback's doing, in mid-fit
            return dict(super().run(optimizer, batch_idx, kwargs))
        zero_grad = self.optim_progress.optimizer.zero_grad
        step = self.optim_progress.optimizer.step
        model = self.trainer.lightning_module
        model._current_fx_name = "training_step"  # for `self.log`
        loss = self.trainer.strategy.training_step(*kwargs.values())
        model._current_fx_name = None
        assert isinstance(loss, Tensor), "training_step returns the loss"
        zero_grad.increment_ready()
        zero_grad.increment_started()
        optimizer.zero_grad()
        zero_grad.increment_completed()
        loss.backward()  # type: ignore[no-untyped-call]
        step.increment_ready()
        optimizer.step()
        step.increment_completed()
        return {"loss": loss.detach()}


def _is_plain(trainer: Trainer, model: LightningModule) -> bool:
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and isinstance(trainer.profiler, QuietProfiler)  # type: ignore[attr-defined]
        and trainer.accumulate_grad_batches == 1
        and trainer.gradient_clip_val is None
        and not trainer._detect_anomaly
        and model.automatic_optimization
        and not any(is_overridden(hook, model, LightningModule) for hook in _MODULE_HOOKS)
        and not any(
            is_overridden(hook, callback, Callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            for hook in _CALLBACK_HOOKS
        )
    )
