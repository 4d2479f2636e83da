"""The fast training step: Lightning's step without its hooks, for runs in which nothing overrides them.

In the step of a small network, Lightning spends most of its time calling empty hooks, each within several profiler
contexts. The fast step does only the operations of an optimiser step on one device, in Lightning's order and with
bit-identical results. All other cases use Lightning's own step.
"""

import inspect
import logging
import os
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

_LOG = logging.getLogger(__name__)
TRIED_VERSIONS = ("2.5", "2.6")
"""Minor versions of Lightning against which the fast step was compared with Lightning's own."""
_NO_CONTEXT = nullcontext()
_PRECISIONS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
"""Precision plugins that affect the forward pass and the weights, but not the optimiser's step."""
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
    """Profiles nothing, without the generator that PassThroughProfiler creates forty times per step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Return a context that does nothing."""
        return _NO_CONTEXT


def hide_no_gpu() -> None:
    """Hide CUDA if there is no GPU; otherwise torch queries the driver at each optimiser step."""
    # setdefault, so that a user's choice of devices is kept.
    if not torch.cuda.is_available():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def use_fast_step(trainer: Trainer) -> None:
    """Make `trainer` use the fast step where possible; does nothing with an untested version of Lightning."""
    if ".".join(lightning.__version__.split(".")[:2]) not in TRIED_VERSIONS:
        _LOG.debug("no fast step with Lightning %s: tried are %s", lightning.__version__, TRIED_VERSIONS)
        return
    trainer.fit_loop.epoch_loop.automatic_optimization = FastOptimization(trainer)


class FastOptimization(_AutomaticOptimization):
    """Lightning's automatic optimisation with a shortcut, whose use is decided at the first step of each fit.

    Only then are the optimiser and the callbacks of the model known, which may rule it out.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.is_fast = False
        """True if the current fit uses the fast step."""
        self._decided_for: Optimizer | None = None

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> dict[str, Any]:
        """Do one optimiser step on the batch in `kwargs`; return the detached loss under `loss`."""
        trainer = self.trainer
        if optimizer is not self._decided_for:  # each fit creates its own optimiser
            self._decided_for, self.is_fast = optimizer, _is_plain(trainer, optimizer)
        # Callbacks may change the last two values during a fit.
        if not self.is_fast or self._skip_backward or trainer.accumulate_grad_batches != 1:
            return dict(super().run(optimizer, batch_idx, kwargs))
        model = trainer.lightning_module
        model._current_fx_name = "training_step"  # `self.log` looks here for the hook it is called from
        # Through the strategy, which applies the precision's autocast.
        loss = trainer.strategy.training_step(*kwargs.values())
        model._current_fx_name = None
        if not isinstance(loss, Tensor):
            self.is_fast = False
            return self._finish(loss, optimizer, batch_idx)
        # The counters are incremented as in Lightning: they go into checkpoints.
        zero_grad = self.optim_progress.optimizer.zero_grad
        step = self.optim_progress.optimizer.step
        zero_grad.increment_ready()
        zero_grad.increment_started()
        # After the forward pass, in the order of Lightning's closure.
        optimizer.zero_grad()
        zero_grad.increment_completed()
        # Directly by autograd: Lightning's strategy would only add hooks and a gradient scaler, both of which
        # `_is_plain` has ruled out.
        loss.backward()  # type: ignore[no-untyped-call]
        step.increment_ready()
        optimizer.step()
        step.increment_completed()
        return {"loss": loss.detach()}

    def _finish(self, output: Any, optimizer: Optimizer, batch_idx: int) -> dict[str, Any]:
        """Let Lightning do the rest of a step whose training_step has returned `output`, a dict or None."""
        # The forward pass is done: the closure only hands its result over.
        result = ClosureResult.from_training_step_output(output)
        closure = Closure(
            lambda: result,
            self._make_backward_fn(optimizer),
            self._make_zero_grad_fn(batch_idx, optimizer),
        )
        self._optimizer_step(batch_idx, closure)
        consumed = closure.consume_result()
        return {} if consumed.loss is None else consumed.asdict()


def _is_plain(trainer: Trainer, optimizer: Optimizer) -> bool:
    """True if the fast step omits nothing that Lightning's own step would do."""
    model, precision = trainer.lightning_module, trainer.precision_plugin
    return (
        # One process on one device; a subclass might do more.
        type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in _PRECISIONS
        # Only float16 has a gradient scaler, which may skip a step.
        and getattr(precision, "scaler", None) is None
        # A real profiler measures each hook.
        and isinstance(trainer.profiler, QuietProfiler)  # type: ignore[attr-defined]
        and trainer.accumulate_grad_batches == 1
        and trainer.gradient_clip_val is None
        and not trainer._detect_anomaly
        and model.automatic_optimization
        and not _uses_closure(optimizer)
        and not any(is_overridden(hook, model, LightningModule) for hook in _MODULE_HOOKS)
        and not any(
            is_overridden(hook, callback, Callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            for hook in _CALLBACK_HOOKS
        )
    )


def _uses_closure(optimizer: Optimizer) -> bool:
    """True if `optimizer` may need the forward and backward pass as a closure passed to its `step`."""
    # The use of the closure is unknown for optimisers outside torch.
    if not type(optimizer).__module__.startswith("torch.optim."):
        return True
    # Hooks before the step run before the closure; in the fast step the gradients would already be there.
    if optimizer._optimizer_step_pre_hooks or torch_optimizer._global_optimizer_pre_hooks:
        return True
    # LBFGS, for one, calls the closure several times in a step.
    return inspect.signature(type(optimizer).step).parameters["closure"].default is inspect.Parameter.empty
