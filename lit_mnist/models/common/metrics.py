"""Running means of losses and metrics, summed on the device and read once per window or epoch."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class Means:
    """Running means of scalars over images, kept as sums on the device; only reading them waits for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """Name to the sum over images, a float32 scalar on the device of the model."""
        self.count = 0
        """Number of images."""

    def add(self, count: int, values: dict[str, Tensor]) -> None:
        """Add means over `count` images."""
        for name, value in values.items():
            # In float32 whatever the precision of the step: bfloat16 has 8 significant bits, so that a sum over
            # steps stops growing after a few hundred of them.
            weighted = value.detach().float() * count
            # In place from the second step on: no new tensor per metric and step.
            self.sums[name] = self.sums[name].add_(weighted) if name in self.sums else weighted
        self.count += count

    def merge(self, other: "Means") -> None:
        """Add the sums and the count of `other`."""
        for name, value in other.sums.items():
            # Cloned, because `add` changes its sums in place.
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += other.count

    def reduced(self, trainer: Trainer, device: torch.device) -> tuple[int, dict[str, float]]:
        """Return count and means over all ranks, by one synchronisation with the device and one collective."""
        if not self.sums:
            return 0, {}
        # In float64: float32 cannot tell numbers above 2 ** 24 apart, and a count of images may be larger.
        count = scalar(self.count, device)
        packed = torch.stack([*(s.to(count.dtype) for s in self.sums.values()), count])
        if trainer.world_size > 1:
            packed = trainer.strategy.reduce(packed, reduce_op="sum")
        # The only place where training waits for the device.
        *sums, total = packed.tolist()
        return int(total), {name: s / total for name, s in zip(self.sums, sums, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the count, as plain types on the CPU."""
        return {"count": self.count, "sums": {name: value.cpu() for name, value in self.sums.items()}}

    @classmethod
    def from_states(cls, states: Sequence[dict[str, Any]], device: torch.device) -> "Means":
        """Return the sum of all `states` (see `state_dict`)."""
        means = cls()
        for state in states:
            part = cls()
            part.count = state["count"]
            part.sums = {name: value.to(device) for name, value in state["sums"].items()}
            means.merge(part)
        return means


class TrainingWindows:
    """The means of the training steps: over windows of `log_every_n_steps` steps, and over epochs.

    All windows have the same length, since a mean over fewer steps is noisier: a window that is incomplete at the
    end of an epoch continues in the next epoch. A window's steps are therefore in two places:

        epoch 1                          epoch 2
        |--- window ---|--- window ---|--|------|--- window ---|
                                       ^  ^
                                 carried  current
    """

    def __init__(self) -> None:
        self.current = Means()
        """This epoch's steps since the last window was closed."""
        self.carried = Means()
        """The open window's steps in earlier epochs."""
        self.epoch = Means()
        """This epoch's steps in windows that have been closed."""
        self.closed_step = self.epoch_step = 0
        """The steps at which the last window was closed, and at which the current epoch began."""
        self._start = self._pause = time.perf_counter()
        """When the open window began, shifted by all pauses since then; and when the last pause began."""
        self._carried_seconds = 0.0
        """Duration of the open window's part in earlier epochs."""

    def begin_epoch(self, step: int) -> None:
        """Start the clock of the epoch's first window; the time between epochs does not count."""
        self._start = time.perf_counter() - self._carried_seconds
        self.epoch_step = step

    def end_epoch(self, step: int) -> Means:
        """Return the epoch's means, and carry the open window's steps into the next epoch."""
        means, self.epoch = self.epoch, Means()
        means.merge(self.current)
        self.carried.merge(self.current)
        self.current = Means()
        self._carried_seconds = time.perf_counter() - self._start if self.carried.count else 0.0
        self.epoch_step = step  # a fit that is resumed here skips on_train_epoch_start (Lightning 2.6)
        return means

    def close(self, step: int) -> Means | None:
        """Close the window; return its means, None if it is empty. `lap` then starts the next one's clock."""
        if step == self.closed_step:  # no step was taken, or gradients are still being accumulated
            return None
        self.epoch.merge(self.current)
        window, self.carried, self._carried_seconds = self.carried, Means(), 0.0
        window.merge(self.current)
        self.current, self.closed_step = Means(), step
        return window

    def lap(self) -> float:
        """Return the seconds that the closed window took, and start the clock of the next one."""
        now = time.perf_counter()
        took, self._start = now - self._start, now
        return took

    def pause(self) -> None:
        """Stop the clock: a validation in mid-epoch does not count as training time."""
        self._pause = time.perf_counter()

    def unpause(self) -> None:
        """Start the clock again, as if the window had begun later."""
        self._start += time.perf_counter() - self._pause

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state as plain types. The keys are those of stored checkpoints."""
        return {
            "window": self.current.state_dict(),
            "epoch": self.epoch.state_dict(),
            "carried": self.carried.state_dict(),
            "carried_seconds": self._carried_seconds,
            "logged_step": self.closed_step,
            "epoch_step": self.epoch_step,
            "seconds": time.perf_counter() - self._start,
        }

    def load_states(
        self, states: Sequence[dict[str, Any]], rank: int, world_size: int, device: torch.device
    ) -> None:
        """Restore the states of all ranks; if the number of ranks has changed, rank 0 takes all sums.

        Args:
            states: One for each rank that wrote the checkpoint.
            rank: This process's rank.
            world_size: The number of ranks now.
            device: Where the sums will be.

        """
        # The total over all ranks stays the same; only its distribution over the ranks changes.
        mine = [states[rank]] if len(states) == world_size else states if rank == 0 else []
        self.current = Means.from_states([state["window"] for state in mine], device)
        self.epoch = Means.from_states([state["epoch"] for state in mine], device)
        # In version 0.1.0 windows ended with the epoch, and none was carried.
        self.carried = Means.from_states([state["carried"] for state in mine if "carried" in state], device)
        # Step numbers are the same on all ranks, and clocks nearly so: the first rank's are used for all.
        self._carried_seconds = states[0].get("carried_seconds", 0.0)
        self.closed_step = states[0]["logged_step"]
        # Version 0.1.0 did not store the epoch's step; it only matters whether a window was closed after it.
        was_closed = any(state["epoch"]["count"] for state in states)
        self.epoch_step = states[0].get("epoch_step", self.closed_step - was_closed)
        self._start = time.perf_counter() - states[0]["seconds"]


def scalar(value: float, device: torch.device) -> Tensor:
    """A number as a tensor on `device`, in float64 where the device supports it."""
    # Apple's GPUs have no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(float(value), dtype=dtype, device=device)
