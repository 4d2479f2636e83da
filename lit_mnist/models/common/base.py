"""The base of all architectures: optimiser hyperparameters, metrics and their logging, and the state of both."""

import math
import time
from io import BytesIO
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed

from lit_mnist.data.loader import as_batch
from lit_mnist.errors import UserError
from lit_mnist.models.common.optimizers import (
    OptimizerName,
    Schedule,
    check_optimizer,
    make_optimizer,
    make_schedule,
)

Stage = Literal["train", "val", "test"]


class Means:
    """Running means of scalars over images: sums on the device, which nothing waits for until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, count: int, values: dict[str, Tensor]) -> None:
        """Add means over `count` images."""
        for name, value in values.items():
            # In float32 whatever the precision of the step: bfloat16 has 8 significant bits, so that a sum over
            # steps stops growing after a few hundred of them.
            weighted = value.detach().float() * count
            self.sums[name] = self.sums[name].add_(weighted) if name in self.sums else weighted
        self.count += count

    def merge(self, other: "Means") -> None:
        """Add all that `other` has."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += other.count

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the count, as plain types on the CPU."""
        return {"count": self.count, "sums": {name: value.cpu() for name, value in self.sums.items()}}

    @classmethod
    def from_states(cls, states: list[dict[str, Any]], device: torch.device) -> "Means":
        """Return what all `states` (see `state_dict`) have together."""
        means = cls()
        for state in states:
            part = cls()
            part.count = state["count"]
            part.sums = {name: value.to(device) for name, value in state["sums"].items()}
            means.merge(part)
        return means


class LitModel(LightningModule):
    """Base of all architectures.

    A subclass defines `_step(batch, stage)`, which returns the loss and passes to `_record` what to average.
    All metrics are logged by `_log`: `train/…` every `log_every_n_steps` as means over those steps, with the
    learning rate and the images per second; `train/…_epoch` over the epoch; `val/…` and `test/…` over all their
    images. The windows of `train/…` are equally long, since the mean over a few steps is noisier than that over
    many: one that an epoch's end interrupts goes on in the next. Of epochs shorter than a window, each is one.

    Batches are those of this package's datamodules, or pairs `(x, y)` as a DataLoader gives them.

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
        # Finds the arguments of the subclass's __init__ in the calling frames. That works through
        # `super().__init__` only: a subclass that calls its base by name has no hyperparameters, and no error says
        # so.
        self.save_hyperparameters()
        check_optimizer(self.hparams)
        # "train" holds this epoch's steps since the last window was logged, `_carried` the open window's steps in
        # earlier epochs; `_epoch_means` what the epoch's earlier windows held.
        self._means: dict[Stage, Means] = {"train": Means(), "val": Means(), "test": Means()}
        self._epoch_means, self._carried = Means(), Means()
        self._window_start = self._validation_start = time.perf_counter()
        self._carried_seconds = 0.0
        # The steps at which the last window ended, and at which the current epoch began.
        self._logged_step = self._epoch_step = 0
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
        """Create the model of a checkpoint, as Lightning does, also of one that version 0.1 wrote."""
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            # Checked only after the failure: a look at every checkpoint first would read each file twice.
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
        fused = trainer is None or trainer.gradient_clip_val is None
        optimizer = make_optimizer(self.parameter_groups(), h, fused)
        if h["lr_schedule"] == "constant" and not h["warmup_steps"]:
            return optimizer
        # Asked only if needed: Lightning sets up the training data for it.
        total = self.trainer.estimated_stepping_batches
        schedule = make_schedule(optimizer, h["lr_schedule"], h["warmup_steps"], total, h["lr_decay"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The batch's loss, a scalar."""
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
        was_training = self.training
        self.eval()
        with torch.no_grad():
            self._step(as_batch(batch), "val")
        # The step above was no validation: what it has recorded must not count.
        means, self._means["val"] = self._means["val"], Means()
        self.train(was_training)
        return [f"val/{name}" for name in means.sums]

    def on_train_epoch_start(self) -> None:
        """Start the clock of the epoch's first window, which stands still between epochs."""
        self._window_start = time.perf_counter() - self._carried_seconds
        self._epoch_step = self.trainer.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means over the last `log_every_n_steps` steps when these are done."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.trainer.global_step - self._logged_step >= every:
            self._log(self._close_window())

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch, and of an epoch without a closed window those of its steps."""
        values: dict[str, float] = {}
        # By steps, which are the same on all ranks. A training that is ended in mid-epoch logs no short window,
        # unless it is the only one.
        if self._logged_step <= self._epoch_step and (self.trainer.is_last_batch or not self._logged_step):
            values = self._close_window()
        self._epoch_means.merge(self._means["train"])
        self._carried.merge(self._means["train"])
        self._carried_seconds = time.perf_counter() - self._window_start if self._carried.count else 0.0
        _, means = self._reduced(self._epoch_means)
        self._check_finite(means)
        self._means["train"], self._epoch_means = Means(), Means()
        self._epoch_step = self.trainer.global_step  # a fit that is resumed here begins no epoch (Lightning 2.6)
        self._log(values | {f"train/{name}_epoch": value for name, value in means.items()})

    def on_validation_epoch_start(self) -> None:
        """Note the time: a validation in mid-epoch does not count as training time."""
        self._validation_start = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation images."""
        self._log_evaluation("val")
        # As if the window had begun later: images_per_s is the speed of training alone.
        self._window_start += time.perf_counter() - self._validation_start

    def on_test_epoch_end(self) -> None:
        """Log the means over the test images."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add each rank's running means: sums taken in another order would differ in the last bits."""
        state = {
            "window": self._means["train"].state_dict(),
            "epoch": self._epoch_means.state_dict(),
            "carried": self._carried.state_dict(),
            "carried_seconds": self._carried_seconds,
            "logged_step": self._logged_step,
            "epoch_step": self._epoch_step,
            "seconds": time.perf_counter() - self._window_start,
        }
        # A collective operation, which Lightning's save_checkpoint allows: it dumps the state on every rank, and
        # writes the file on rank 0.
        states: list[Any] = [state]
        if distributed.is_available() and distributed.is_initialized():
            states = [None] * distributed.get_world_size()
            distributed.all_gather_object(states, state)
        checkpoint["means"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the running means; with another number of ranks, the first one takes all of them."""
        states, trainer = checkpoint.get("means"), self._find_trainer()
        # `load_from_checkpoint` has no Trainer, and needs no means.
        if not states or trainer is None:
            return
        rank, world_size = trainer.global_rank, trainer.world_size
        # Sums over all ranks stay what they were; only who holds them changes.
        mine = [states[rank]] if len(states) == world_size else states if rank == 0 else []
        device = trainer.strategy.root_device  # to which this module has not been moved yet
        self._means["train"] = Means.from_states([state["window"] for state in mine], device)
        self._epoch_means = Means.from_states([state["epoch"] for state in mine], device)
        # Before version 0.3 windows ended with the epoch, and none was carried.
        self._carried = Means.from_states([state["carried"] for state in mine if "carried" in state], device)
        self._carried_seconds = states[0].get("carried_seconds", 0.0)
        self._logged_step = states[0]["logged_step"]
        was_logged = any(state["epoch"]["count"] for state in states)  # in this epoch
        self._epoch_step = states[0].get("epoch_step", self._logged_step - was_logged)
        self._window_start = time.perf_counter() - states[0]["seconds"]

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _step(batch, stage)")

    def _record(self, stage: Stage, count: int, **values: Tensor) -> None:
        """Add to the means of `stage` the `values`, each a mean over `count` images."""
        self._means[stage].add(count, values)

    def _close_window(self) -> dict[str, float]:
        """Return the metrics of the steps since the last window, and add the sums of this epoch's to the epoch's.

        Raises:
            UserError: a metric is NaN or infinite.

        """
        step = self.trainer.global_step
        if step == self._logged_step:  # the window is empty, or gradients are still being accumulated
            return {}
        self._epoch_means.merge(self._means["train"])
        window, self._carried, self._carried_seconds = self._carried, Means(), 0.0
        window.merge(self._means["train"])
        self._means["train"] = Means()
        count, means = self._reduced(window)
        self._check_finite(means)
        now = time.perf_counter()
        values = {f"train/{name}": value for name, value in means.items()}
        values["images_per_s"] = count / (now - self._window_start)
        values["lr"] = self._lr
        self._window_start, self._logged_step = now, step
        return values

    def _check_finite(self, means: dict[str, float]) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(
                    f"train/{name} is {value} at step {self.trainer.global_step} (epoch {self.current_epoch}):"
                    " training has diverged; a lower --model.lr or --model.momentum may help"
                )

    def _log_evaluation(self, stage: Stage) -> None:
        means, self._means[stage] = self._means[stage], Means()
        # Means over the first batches, before any training, would be a point at step 0 of every curve.
        if not self.trainer.sanity_checking:
            self._log({f"{stage}/{name}": value for name, value in self._reduced(means)[1].items()})

    def _reduced(self, means: Means) -> tuple[int, dict[str, float]]:
        """Return count and means over all ranks, by one synchronisation with the device and one collective."""
        if not means.sums:
            return 0, {}
        # In float64: float32 cannot tell numbers above 2 ** 24 apart, and a count of images may be larger.
        count = _scalar(means.count, self.device)
        packed = torch.stack([*(s.to(count.dtype) for s in means.sums.values()), count])
        if self.trainer.world_size > 1:
            packed = self.trainer.strategy.reduce(packed, reduce_op="sum")
        # The one place where training waits for the device.
        *sums, total = packed.tolist()
        return int(total), {name: s / total for name, s in zip(means.sums, sums, strict=True)}

    def _log(self, values: dict[str, float]) -> None:
        """Log metrics at the current step, for loggers and for callbacks that monitor them.

        Not by `self.log`: for the metrics of 50 steps it takes as long as four steps of a small network (Lightning
        2.6), and its x axis begins with 0 in some hooks and with 1 in others.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            # What a callback monitors must be the number that was logged, and not its float32.
            scalars = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
            self.trainer.callback_metrics.update(scalars)
            for logger in self.trainer.loggers:
                logger.log_metrics({**values, "epoch": self.current_epoch}, self.trainer.global_step)
        else:  # `Trainer.validate` and `Trainer.test` return what was logged by `self.log`
            values = {**values, "epoch": self.current_epoch, "step": self.trainer.global_step}
            self.log_dict({name: _scalar(value, self.device) for name, value in values.items()}, batch_size=1)

    def _find_trainer(self) -> Trainer | None:
        """Return the Trainer this model is attached to, or None outside of one, where `self.trainer` raises."""
        try:
            return self.trainer
        except RuntimeError:
            return None


def _scalar(value: float, device: torch.device) -> Tensor:
    # Apple's GPUs have no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(float(value), dtype=dtype, device=device)
