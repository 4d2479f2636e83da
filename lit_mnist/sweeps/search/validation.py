"""Checks a specification before anything is trained: builds each kind of point, with the stages below it."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_mnist.data import Batch
from lit_mnist.errors import UsageError, UserError, nearest
from lit_mnist.sweeps.search.parameters import Plain
from lit_mnist.sweeps.search.spec import OWN_METRICS, Spec, trial_stage
from lit_mnist.sweeps.timing import Length, measure_length
from lit_mnist.terminal import warn
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.fit import check_fit
from lit_mnist.training.stages import Stage


@dataclass(frozen=True)
class ProbePoint:
    """A point of one kind, and what is trained for it."""

    point: Mapping[str, Plain]
    stage: Stage
    validations: int
    """Of one training that nothing ends early."""


def check(spec: Spec) -> list[ProbePoint]:
    """Build every kind of point, without training; returns those that fit into this machine's memory.

    The machine that starts a sweep is often smaller than those that train, such as a cluster's login node, so a
    point that does not fit is a warning. If it does not fit there either, its trials fail and the others go on.

    Raises:
        UsageError: names what does not hold, the nearest valid name, and the point.

    """
    kinds = []
    with builder(spec.seeds[0]) as build:
        for point in spec.space.kinds():
            stage = trial_stage(spec, point)
            try:
                with at(point):
                    cli = build(stage)
                    _check_metrics(spec, cli)
            except TooLargeError as error:
                warn_too_large(error)
                continue
            with at(point):
                length = measure_length(cli)
                _check_length(spec, length)
            kinds.append(ProbePoint(point, stage, length.validations))
    return kinds


class TooLargeError(UserError):
    """A model does not fit into this machine's memory."""


def warn_too_large(error: TooLargeError) -> None:
    """Print that a point does not fit, and what that means for its trials."""
    warn(f"not enough memory here: {error}; where the sweep trains, such trials fail unless there is more")


class Builder:
    """Builds stages on checkpoints of the untrained stages below, so that names and shapes meet as in training.

    Args:
        folder: Where the checkpoints are put.
        seed: Of every stage.

    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._checkpoints: dict[Stage, Path] = {}

    def __call__(self, stage: Stage) -> LitCLI:
        """Model and data of the stage, the data read and split."""
        arguments = stage.arguments("full", self.seed)
        if stage.source is not None:
            arguments += [stage.source_flag, str(self._checkpoint(stage.source))]
        cli = LitCLI(arguments)
        check_fit(cli)
        cli.datamodule.setup("fit")
        return cli

    def _checkpoint(self, stage: Stage) -> Path:
        if stage not in self._checkpoints:
            weights = self(stage).model.state_dict()
            path = self.folder / f"{len(self._checkpoints)}.ckpt"
            torch.save({"state_dict": weights}, path)
            self._checkpoints[stage] = path
        return self._checkpoints[stage]


@contextmanager
def builder(seed: int) -> Iterator[Builder]:
    """A builder, while its checkpoints are there."""
    with tempfile.TemporaryDirectory() as folder:
        yield Builder(Path(folder), seed)


@contextmanager
def at(point: Mapping[str, Plain]) -> Iterator[None]:
    """Append the point to the message of what is wrong with it."""
    try:
        yield
    except (UserError, RuntimeError, MemoryError) as error:  # RuntimeError: torch found shapes that do not match
        text = f"{' '.join(str(error).split()) or type(error).__name__} (at {written_point(point)})"
        if is_out_of_memory(error):
            raise TooLargeError(text) from None
        raise (type(error) if isinstance(error, UserError) else UsageError)(text) from None


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory could not be allocated, on the CPU or on a GPU; torch has no own exception for the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | UserError) and "can't allocate memory" in str(error)


def written_point(point: Mapping[str, Plain]) -> str:
    """A point for people."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in point.items()
    )


def _check_metrics(spec: Spec, cli: LitCLI) -> None:
    image = torch.rand(2, *cli.datamodule.image_shape)
    names = cli.model.val_metric_names(Batch(image, image, torch.tensor([0, 1])))
    there = [*names, f"best/{cli.model.monitor}", *OWN_METRICS]
    for metric in _metrics(spec):
        if metric not in there:
            raise UsageError(
                f"metric {metric}: {type(cli.model).__name__} ends with none of that name"
                f"{nearest(metric, there)}; there are {', '.join(there)}"
            )


def _check_length(spec: Spec, length: Length) -> None:
    """Refuse a training that ends before its first validation, if what is looked for is measured there."""
    needed = [metric for metric in _metrics(spec) if metric not in OWN_METRICS]
    if needed and length.validations == 0:
        steps = "1 step" if length.steps == 1 else f"{length.steps:,} steps"
        raise UsageError(
            f"training ends after {steps}, before its first validation, so that there is no {needed[0]}: raise"
            " trainer.max_steps or trainer.max_epochs, or lower trainer.val_check_interval"
        )


def _metrics(spec: Spec) -> Sequence[str]:
    return [*(goal.metric for goal in spec.objectives), *(constraint.metric for constraint in spec.constraints)]
