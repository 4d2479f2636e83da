"""What every architecture shares: the optimiser's hyperparameters, what is logged, and the state of both."""

import math
import time
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn

from lit_mnist.data.loader import as_batch
from lit_mnist.errors import UsageError, UserError
from lit_mnist.models.common.optimizers import check_optimizer, make_optimizer, make_schedule
from lit_mnist.models.means import Means

Stage = Literal["train", "val", "test"]


class LitModel(LightningModule):
    """Base of all architectures.

    A subclass gives `_step(batch, stage)`, which returns the loss and hands `_record` what is to be averaged.
    Logged are `train/…` every `log_every_n_steps` as means over those steps, with the learning rate and the
    images per second, `train/…_epoch` over the epoch, `val/…` and `test/…` over all their images.

    Batches are those of this package's datamodules, or pairs `(x, y)` as a DataLoader gives them.

    Args:
        optimizer: Which of torch.optim's to use.
        lr: Learning rate.
        momentum: Of sgd and rmsprop; adam has none to set.
        weight_decay: L2 penalty, as torch.optim applies it.
        lr_schedule: How the learning rate goes on after the warm-up: as it is, or down to 0 at training's end.
        warmup_steps: Steps over which the learning rate rises from 0.

    Raises:
        UsageError: a rate out of range, or a momentum for adam.

    """

    monitor: ClassVar[str] = "val/loss"
    """The validation metric by which the best checkpoint is chosen."""
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    channels_last: ClassVar[bool] = False
    """Whether the network runs in that memory format, for convolutions that are faster so."""

    def __init__(
        self,
        optimizer: Literal["sgd", "adam", "rmsprop"] = "adam",
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        lr_schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_optimizer(self.hparams)
        self._means: dict[Stage, Means] = {"train": Means(), "val": Means(), "test": Means()}
        self._epoch_means = Means()
        self._window_start = self._validation_start = time.perf_counter()
        self._logged_step = 0
        self._lr = lr
        self.latest: dict[str, float] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this one some forty times a step, and nn.Module's way takes a microsecond or two each.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Lay the weights out in the memory format the network runs in."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser moves, each group at its own `lr` if it names one."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_optimizers(self) -> Any:
        """The optimiser that the hyperparameters name, with a schedule where they name one."""
        h = self.hparams
        # Lightning cannot clip the gradients of a fused optimiser in mixed precision.
        fused = self._trainer is None or self._trainer.gradient_clip_val is None
        optimizer = make_optimizer(self.parameter_groups(), h, fused)
        if h["lr_schedule"] == "constant" and not h["warmup_steps"]:
            return optimizer
        total = self.trainer.estimated_stepping_batches
        schedule = make_schedule(optimizer, h["lr_schedule"], h["warmup_steps"], total)
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
        """The names of what a validation with such batches logs."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            self._step(as_batch(batch), "val")
        means, self._means["val"] = self._means["val"], Means()
        self.train(was_training)
        return [f"val/{name}" for name in means.sums]

    def on_train_epoch_start(self) -> None:
        """Start the clock of the epoch's first window."""
        self._window_start = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the window that this step closes, if it closes one."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.trainer.global_step % every == 0:
            self._log_window()

    def on_train_epoch_end(self) -> None:
        """Log the steps since the last window, and the means over the epoch."""
        self._log_window()
        _, means = self._reduced(self._epoch_means)
        self._epoch_means = Means()
        self._log_epoch({f"train/{name}_epoch": value for name, value in means.items()})

    def on_validation_epoch_start(self) -> None:
        """Note the time: what validation takes in mid-epoch is no training."""
        self._validation_start = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation images."""
        self._log_evaluation("val")
        self._window_start += time.perf_counter() - self._validation_start

    def on_test_epoch_end(self) -> None:
        """Log the means over the test images."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the running means, each rank's its own, since sums in another order differ in the last bits."""
        state = {
            "window": self._means["train"].state_dict(),
            "epoch": self._epoch_means.state_dict(),
            "logged_step": self._logged_step,
            "seconds": time.perf_counter() - self._window_start,
        }
        checkpoint["means"] = _of_all_ranks(state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the running means up again; those of another number of ranks all go to the first."""
        states = checkpoint.get("means")
        if not states or self._trainer is None:
            return
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        mine = [states[rank]] if len(states) == world_size else states if rank == 0 else []
        device = self.trainer.strategy.root_device  # where this module is about to be
        self._means["train"] = Means.of([state["window"] for state in mine], device)
        self._epoch_means = Means.of([state["epoch"] for state in mine], device)
        self._logged_step = states[0]["logged_step"]
        self._window_start = time.perf_counter() - states[0]["seconds"]

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _step(batch, stage)")

    def _record(self, stage: Stage, count: int, **values: Tensor) -> None:
        """Take the means of `values` over `count` images into those of `stage`."""
        self._means[stage].add(count, values)

    def _log_window(self) -> None:
        """Log the means over the steps since the last window, and hand its sums on to the epoch's."""
        step = self.trainer.global_step
        if step == self._logged_step:  # a batch whose gradients are yet to be accumulated is no step
            return
        window, self._means["train"] = self._means["train"], Means()
        self._epoch_means.merge(window)
        count, means = self._reduced(window)
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(
                    f"train/{name} is {value} at step {step} (epoch {self.current_epoch}): training has"
                    " diverged; a lower --model.lr or --model.momentum may help"
                )
        now = time.perf_counter()
        values = {f"train/{name}": value for name, value in means.items()}
        values["images_per_s"] = count / (now - self._window_start)
        values["lr"] = self._lr
        self._window_start, self._logged_step = now, step
        self._log_step(values)

    def _log_evaluation(self, stage: Stage) -> None:
        means, self._means[stage] = self._means[stage], Means()
        if not self.trainer.sanity_checking:
            self._log_epoch({f"{stage}/{name}": value for name, value in self._reduced(means)[1].items()})

    def _reduced(self, means: Means) -> tuple[int, dict[str, float]]:
        """Count and means over all ranks; one wait for the device, one collective."""
        if not means.sums:
            return 0, {}
        count = _scalar(means.count, self.device)
        packed = torch.stack([*(s.to(count.dtype) for s in means.sums.values()), count])
        if self.trainer.world_size > 1:
            packed = self.trainer.strategy.reduce(packed, reduce_op="sum")
        *sums, total = packed.tolist()
        return int(total), {name: s / total for name, s in zip(means.sums, sums, strict=True)}

    def _log_step(self, values: dict[str, float]) -> None:
        # Straight to the logger: `self.log` takes as long for these as the network does for a step.
        self.latest = values
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, self.trainer.global_step)

    def _log_epoch(self, values: dict[str, float]) -> None:
        # "step" is the x axis: Lightning's own would count from 0 in some hooks and from 1 in others.
        values = {**values, "epoch": self.current_epoch, "step": self.trainer.global_step}
        self.log_dict({name: _scalar(value, self.device) for name, value in values.items()}, batch_size=1)


def activation(name: str) -> nn.Module:
    """A layer of the activation `name`, one of ACTIVATIONS.

    Raises:
        UsageError: there is none of that name.

    """
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def _of_all_ranks(state: dict[str, Any]) -> list[dict[str, Any]]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, state)
    return states


def _scalar(value: float, device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(float(value), dtype=dtype, device=device)
