"""The base of all architectures: optimiser, schedule, steps, and the logging of metrics."""

import math
from io import BytesIO
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed

from lit_mnist.data.loader import as_batch
from lit_mnist.errors import UserError
from lit_mnist.models.common.metrics import Means, TrainingWindows, scalar
from lit_mnist.models.common.optimizers import (
    OptimizerName,
    Schedule,
    check_optimizer,
    make_optimizer,
    make_schedule,
)

Stage = Literal["train", "val", "test"]


class LitModel(LightningModule):
    """Base of all architectures.

    A subclass defines `_step(batch, stage)`, which returns the loss and passes the metrics to `_record`.
    All metrics are logged by `_log`: `train/…` every `log_every_n_steps` as means over those steps, with the
    learning rate and the images per second; `train/…_epoch` over the epoch; `val/…` and `test/…` over all their
    images. All windows of `train/…` have the same length (see `TrainingWindows`), except that an epoch shorter
    than a window is a window of its own.

    Batches come from this package's data modules, or are pairs `(x, y)` from any DataLoader.

    Args:
        optimizer: Optimiser of torch.optim.
        lr: Learning rate.
        momentum: Momentum of sgd and rmsprop; adam does not take any.
        weight_decay: L2 penalty, as torch.optim applies it.
        lr_schedule: Course of the learning rate after the warm-up: constant; linear or cosine, which fall to 0 at
            the end of training; or inverse_time, lr / (1 + lr_decay * step).
        warmup_steps: Steps over which the learning rate rises from 0.
        lr_decay: Decay per step of the schedule inverse_time, which Keras called `decay`.

    Raises:
        UsageError: A name is unknown, a value is out of range, or a value has no effect.

    """

    monitor: ClassVar[str] = "val/loss"
    """The validation metric by which the best checkpoint is chosen."""
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    channels_last: ClassVar[bool] = False
    """True to run the network in this memory format, in which convolutions on a CPU are 1.3 times as fast."""

    def __init__(
        self,
        optimizer: OptimizerName = "adam",
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        lr_schedule: Schedule = "constant",
        warmup_steps: int = 0,
        lr_decay: float = 0.0,
    ) -> None:
        super().__init__()
        # Finds the arguments of the subclass's __init__ in the calling frames. This works through
        # `super().__init__` only: a subclass that calls its base by name silently gets no hyperparameters.
        self.save_hyperparameters()
        check_optimizer(self.hparams)
        self._windows = TrainingWindows()
        self._means: dict[Stage, Means] = {"val": Means(), "test": Means()}
        # Set anew in each training step; this value is for models whose training_step is overridden.
        self._lr = lr

    def __setattr__(self, name: str, value: Any) -> None:
        # Before and after each hook, Lightning sets an attribute to the hook's name or None, some forty times a
        # step; nn.Module would look for parameters, buffers and submodules each time, which takes 1 to 2 µs.
        if name in self.__dict__ and (value is None or type(value) is str):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Create a model from a checkpoint, as Lightning does, including checkpoints of version 0.1."""
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            # Checked only after a failure: checking every checkpoint first would read each file twice.
            if "picture_shape" not in str(error):  # version 0.1's name for image_shape
                raise
        if hasattr(checkpoint_path, "seek"):
            checkpoint_path.seek(0)
        checkpoint = torch.load(checkpoint_path, "cpu", weights_only=True)
        hparams = checkpoint["hyper_parameters"]
        hparams["image_shape"] = hparams.pop("picture_shape")
        renamed = BytesIO()
        torch.save(checkpoint, renamed)
        renamed.seek(0)
        return super().load_from_checkpoint(renamed, *args, **kwargs)

    def configure_model(self) -> None:
        """Convert the weights to the memory format of the network."""
        # Here and not in __init__, where subclasses have not built their layers yet.
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters to optimise, in groups, which may have their own `lr`."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_optimizers(self) -> Any:
        """Create the optimiser and, unless the learning rate is constant, its schedule."""
        h = self.hparams
        trainer = self._find_trainer()
        # Fused Adam takes 0.6 of the time of the default one for 784-98-784 on one CPU thread (torch 2.15). But
        # Lightning cannot clip the gradients of a fused optimiser in mixed precision.
        # Outside of a Trainer nothing clips.
        fused = trainer is None or trainer.gradient_clip_val is None
        optimizer = make_optimizer(self.parameter_groups(), h, fused)
        if h["lr_schedule"] == "constant" and not h["warmup_steps"]:
            return optimizer
        # Read only if needed: Lightning sets up the training data to compute it.
        total = self.trainer.estimated_stepping_batches
        schedule = make_schedule(optimizer, h["lr_schedule"], h["warmup_steps"], total, h["lr_decay"])
        # By steps, not epochs: warm-ups are counted in steps, and an epoch's length depends on the data.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The batch's loss, a scalar."""
        # The learning rate of the first group: models with several groups list the one with `--model.lr` first.
        groups = self.trainer.optimizers[0].param_groups  # none where configure_optimizers returns None
        self._lr = groups[0]["lr"] if groups else 0.0  # kept now: the schedule moves on before it is logged
        return self._step(as_batch(batch), "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Record the batch under `val/`."""
        self._step(as_batch(batch), "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Record the batch under `test/`."""
        self._step(as_batch(batch), "test")

    def val_metric_names(self, batch: Any) -> list[str]:
        """Return the names of the metrics that a validation with such batches logs."""
        # Found by a trial step, since each model decides in its step which metrics it records.
        was_training = self.training
        self.eval()
        with torch.no_grad():
            self._step(as_batch(batch), "val")
        # Discard what the trial step has recorded, which was not part of a validation.
        means, self._means["val"] = self._means["val"], Means()
        self.train(was_training)
        return [f"val/{name}" for name in means.sums]

    def on_train_epoch_start(self) -> None:
        """Start the clock of the epoch's first window."""
        self._windows.begin_epoch(self.trainer.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means over the last `log_every_n_steps` steps when these are done."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Optimiser steps, and not batches: with accumulated gradients several batches are one step.
        if every and self.trainer.global_step - self._windows.closed_step >= every:
            self._log(self._close_window())

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch; an epoch without a closed window also logs its steps as a window."""
        values: dict[str, float] = {}
        # Decided by step numbers, which are the same on all ranks: either all ranks close the window, or none. A
        # training that ends in mid-epoch logs no short window, unless it is the only one.
        closed = self._windows.closed_step
        if closed <= self._windows.epoch_step and (self.trainer.is_last_batch or not closed):
            values = self._close_window()
        _, means = self._windows.end_epoch(self.trainer.global_step).reduced(self.trainer, self.device)
        self._check_finite(means)
        self._log(values | {f"train/{name}_epoch": value for name, value in means.items()})

    def on_validation_epoch_start(self) -> None:
        """Stop the clock of the window, since images_per_s is the speed of training alone."""
        self._windows.pause()

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation images."""
        self._log_evaluation("val")
        self._windows.unpause()

    def on_test_epoch_end(self) -> None:
        """Log the means over the test images."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add each rank's running means: sums taken in another order would differ in the last bits."""
        state = self._windows.state_dict()
        # A collective operation is allowed here, since Lightning's save_checkpoint collects the state on every
        # rank and writes the file on rank 0.
        states: list[Any] = [state]
        if distributed.is_available() and distributed.is_initialized():
            states = [None] * distributed.get_world_size()
            distributed.all_gather_object(states, state)
        checkpoint["means"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the running means."""
        states, trainer = checkpoint.get("means"), self._find_trainer()
        # `load_from_checkpoint` has no Trainer, and needs no means.
        if states and trainer is not None:
            # Not `self.device`: this module has not been moved yet.
            device = trainer.strategy.root_device
            self._windows.load_states(states, trainer.global_rank, trainer.world_size, device)

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _step(batch, stage)")

    def _record(self, stage: Stage, count: int, **values: Tensor) -> None:
        """Add to the means of `stage` the `values`, each a mean over `count` images and a scalar on the device."""
        (self._windows.current if stage == "train" else self._means[stage]).add(count, values)

    def _close_window(self) -> dict[str, float]:
        """Return the metrics of the steps since the last window; an empty dict if there are none.

        Raises:
            UserError: a metric is NaN or infinite.

        """
        if (window := self._windows.close(self.trainer.global_step)) is None:
            return {}
        count, means = window.reduced(self.trainer, self.device)
        self._check_finite(means)
        # Read only now: a GPU runs asynchronously, and `reduced` has waited for the window's last step.
        seconds = self._windows.lap()
        values = {f"train/{name}": value for name, value in means.items()}
        return {**values, "images_per_s": count / seconds, "lr": self._lr}

    def _check_finite(self, means: dict[str, float]) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(
                    f"train/{name} is {value} at step {self.trainer.global_step} (epoch {self.current_epoch}):"
                    " training has diverged; a lower --model.lr or --model.momentum may help"
                )

    def _log_evaluation(self, stage: Stage) -> None:
        means, self._means[stage] = self._means[stage], Means()
        # Without this check, the sanity check before training would add a point at step 0 to every curve.
        if not self.trainer.sanity_checking:
            _, values = means.reduced(self.trainer, self.device)
            self._log({f"{stage}/{name}": value for name, value in values.items()})

    def _log(self, values: dict[str, float]) -> None:
        """Log metrics at the current step, for loggers and for callbacks that monitor them.

        `self.log` is not used: for the metrics of 50 steps it takes as long as four steps of a small network
        (Lightning 2.6), and its x axis starts at 0 in some hooks and at 1 in others.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            # float64, so that callbacks monitor exactly the number that was logged.
            scalars = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
            self.trainer.callback_metrics.update(scalars)
            for logger in self.trainer.loggers:
                logger.log_metrics({**values, "epoch": self.current_epoch}, self.trainer.global_step)
        else:  # `Trainer.validate` and `Trainer.test` return what was logged by `self.log`
            values = {**values, "epoch": self.current_epoch, "step": self.trainer.global_step}
            self.log_dict({name: scalar(value, self.device) for name, value in values.items()}, batch_size=1)

    def _find_trainer(self) -> Trainer | None:
        """Return the Trainer this model is attached to, or None if there is none, where `self.trainer` raises."""
        try:
            return self.trainer
        except RuntimeError:
            return None
