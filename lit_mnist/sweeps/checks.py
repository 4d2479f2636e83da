"""Whether a specification holds: every kind of point is built, with the stages below it, and looked at."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_mnist.data import Batch
from lit_mnist.errors import UsageError, UserError
from lit_mnist.sweeps.entries import Plain
from lit_mnist.sweeps.spec import OWN_METRICS, Spec, trial_stage
from lit_mnist.training.explain import nearest
from lit_mnist.training.fit import check_fit
from lit_mnist.training.parser import LitCLI
from lit_mnist.training.stages import Stage


@dataclass(frozen=True)
class Kind:
    """A point of one kind, and what is trained for it."""

    point: Mapping[str, Plain]
    stage: Stage


def check(spec: Spec) -> list[Kind]:
    """Build every kind of point, without training; returns them.

    Raises:
        UsageError: names what does not hold, the nearest valid name, and the point.

    """
    kinds = [Kind(point, trial_stage(spec, point)) for point in spec.space.kinds()]
    with builder(spec.seeds[0]) as build:
        for kind in kinds:
            with at(kind.point):
                _check_metrics(spec, build(kind.stage))
    return kinds


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
    """Put the point that something is wrong at behind the message."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{error} (at {written_point(point)})") from None
    except RuntimeError as error:  # torch's way to say that shapes do not fit
        raise UsageError(f"{' '.join(str(error).split())} (at {written_point(point)})") from None


def written_point(point: Mapping[str, Plain]) -> str:
    """A point for people."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in point.items()
    )


def _check_metrics(spec: Spec, cli: LitCLI) -> None:
    picture = torch.rand(2, *cli.datamodule.picture_shape)
    names = cli.model.validated(Batch(picture, picture, torch.tensor([0, 1])))
    there = [*names, f"best/{cli.model.monitor}", *OWN_METRICS]
    for metric in _metrics(spec):
        if metric not in there:
            raise UsageError(
                f"metric {metric}: {type(cli.model).__name__} ends with none of that name"
                f"{nearest(metric, there)}; there are {', '.join(there)}"
            )


def _metrics(spec: Spec) -> Sequence[str]:
    return [*(goal.metric for goal in spec.goals), *(constraint.metric for constraint in spec.constraints)]
