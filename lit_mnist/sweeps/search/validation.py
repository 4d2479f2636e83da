"""Checks of a specification that need no training: the models of the probe points are built on their data."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_mnist.data import Batch
from lit_mnist.errors import UsageError, UserError, nearest, one_line
from lit_mnist.sweeps.resources import count_devices
from lit_mnist.sweeps.search.parameters import Plain
from lit_mnist.sweeps.search.spec import OWN_METRICS, Spec, trial_stage
from lit_mnist.terminal import warn
from lit_mnist.training.checks import check_fit
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.stages import Stage


@dataclass(frozen=True)
class ProbePoint:
    """A point whose model is built before a sweep starts, see `Space.probe_points`."""

    point: Mapping[str, Plain]
    stage: Stage
    """The training of the point."""
    validations: int
    """Validations of that training if nothing ends it early."""


@dataclass(frozen=True)
class Length:
    """How long a training is if nothing ends it early."""

    steps: int
    """Optimiser steps."""
    validations: int
    per_epoch: int
    """Optimiser steps of an epoch."""


class TooLargeError(UserError):
    """A model does not fit into this machine's memory."""


def check(spec: Spec) -> list[ProbePoint]:
    """Build the model of every probe point; return those that fit into this machine's memory.

    The machine that starts a sweep is often smaller than those that train, such as a cluster's login node, so a
    point that does not fit is a warning. If it does not fit there either, its trials fail and the others go on.

    Raises:
        UsageError: model, data or objectives refuse a point; the message names it and the nearest valid name.

    """
    # Seeds differ in weights and order only: one of them shows whether a model can be built.
    probe_points = []
    with StageBuilder(spec.seeds[0]) as build:
        for point in spec.space.probe_points():
            stage = trial_stage(spec, point)
            try:
                with point_in_errors(point):
                    cli = build(stage)
                    _check_metrics(spec, cli)
                    length = training_length(cli)
                    _check_length(spec, length)
            except TooLargeError as error:
                warn_too_large(error)
            else:
                probe_points.append(ProbePoint(point, stage, length.validations))
    return probe_points


def check_machine(spec: Spec, probe_points: Sequence[ProbePoint]) -> None:
    """Refuse a study none of whose trainings could start on this machine: each trial would fail for it.

    Not part of `check`, since a study is planned on machines that are not to train it.

    Args:
        spec: The specification.
        probe_points: As from `check`.

    Raises:
        UsageError: the Trainer refuses every probe point, for example for lack of a GPU.

    """
    # One point that can be trained here is enough.
    errors: list[UsageError] = []
    tried: list[dict[str, Plain]] = []
    for probe in probe_points:
        settings = {name: value for name, value in probe.point.items() if name.startswith("trainer.")}
        # Most points have the same settings of the Trainer, which are tried once.
        if settings in tried:
            continue
        tried.append(settings)
        try:
            LitCLI(probe.stage.arguments("full", spec.seeds[0])).make_trainer(logger=False, callbacks=[])
            return
        except UsageError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def warn_too_large(error: TooLargeError) -> None:
    """Print that a point does not fit, and what that means for its trials."""
    warn(f"not enough memory here: {error}; where the sweep trains, such trials fail unless there is more")


class StageBuilder:
    """Builds stages on checkpoints of the untrained stages below, so that their names and shapes are checked too.

    The checkpoints are in a temporary folder, which lasts as long as the context that the builder is.

    Args:
        seed: Seed of every stage.

    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._folder = tempfile.TemporaryDirectory()
        self._checkpoints: dict[Stage, Path] = {}

    def __enter__(self) -> "StageBuilder":
        return self

    def __exit__(self, *exc: object) -> None:
        self._folder.cleanup()

    def __call__(self, stage: Stage) -> LitCLI:
        """Build the stage's model and datamodule, which is set up for fitting."""
        arguments = stage.arguments("full", self.seed)
        if stage.source is not None:
            if stage.source not in self._checkpoints:
                weights = self(stage.source).model.state_dict()  # writes the checkpoints of the stages below
                path = Path(self._folder.name) / f"{len(self._checkpoints)}.ckpt"
                # As Lightning's checkpoints, of which only the weights are read.
                torch.save({"state_dict": weights}, path)
                self._checkpoints[stage.source] = path
            arguments += [stage.source_flag, str(self._checkpoints[stage.source])]
        cli = LitCLI(arguments)
        _check_devices(cli)
        check_fit(cli)
        # Reads the images once: the datamodule keeps the last split for all points that have the same.
        cli.datamodule.setup("fit")
        return cli


@contextmanager
def point_in_errors(point: Mapping[str, Plain]) -> Iterator[None]:
    """Append the point to the message of an error.

    Raises:
        TooLargeError: memory could not be allocated.
        UserError: model, data or objectives refuse the point.

    """
    try:
        yield
    except (UserError, RuntimeError, MemoryError) as error:  # RuntimeError: torch found shapes that do not match
        # Which of the probe points it was cannot be guessed from an error of torch.
        values = [f"{name} {v if isinstance(v, str) else json.dumps(v)}" for name, v in point.items()]
        text = f"{one_line(error)} (at {', '.join(values)})"
        # torch raises a plain RuntimeError if the CPU's memory is exhausted.
        is_plain = isinstance(error, RuntimeError | UserError) and "can't allocate memory" in str(error)
        if is_plain or isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise TooLargeError(text) from None
        raise (type(error) if isinstance(error, UserError) else UsageError)(text) from None


def training_length(cli: LitCLI) -> Length:
    """Steps and validations of the training that `cli` describes, by the rules of Lightning's loops.

    The datamodule must be set up. Of a training on several devices, each gets its share of the batches. Without
    `max_epochs` and `max_steps`, one epoch is counted.
    """
    trainer = cli.config["trainer"]
    if trainer["fast_dev_run"]:
        return Length(int(trainer["fast_dev_run"]), 1, int(trainer["fast_dev_run"]))
    # Batches of an epoch, and the optimiser steps that they make.
    batches = len(cli.datamodule.train_dataloader()) // (count_devices(trainer["devices"]) or 1)
    for limit in (trainer["limit_train_batches"], trainer["overfit_batches"] or None):
        if limit is not None:
            # Lightning takes a whole number as batches, and a fraction as a share of the epoch.
            batches = min(batches, limit if isinstance(limit, int) else int(batches * limit))
    batches = max(1, batches)
    # Lightning steps at the end of an epoch, too, with the gradients accumulated so far.
    accumulated = max(1, trainer["accumulate_grad_batches"])
    per_epoch = math.ceil(batches / accumulated)
    # Whichever of the two limits comes first.
    # -1 is Lightning's word for no limit.
    max_epochs, max_steps = (
        None if n is None or n < 0 else n for n in (trainer["max_epochs"], trainer["max_steps"])
    )
    steps = per_epoch * (1 if max_epochs is None else max_epochs)
    if max_steps is not None:
        steps = max_steps if max_epochs is None else min(steps, max_steps)
    if trainer["limit_val_batches"] == 0 or not cli.datamodule.sizes()["val"]:
        return Length(steps, 0, per_epoch)

    # How many validations there are on the way.
    whole_epochs, rest = divmod(steps, per_epoch)
    interval = 1.0 if trainer["val_check_interval"] is None else trainer["val_check_interval"]
    if not isinstance(interval, int | float):  # a time: how often that is depends on the machine
        return Length(steps, max(1, whole_epochs), per_epoch)
    between = interval if isinstance(interval, int) else max(1, int(batches * interval))
    begun = min(rest * accumulated, batches)  # batches of the last epoch, if the steps end before it does
    if (every_n_epochs := trainer["check_val_every_n_epoch"]) is None:  # batches are counted across epochs
        return Length(steps, (whole_epochs * batches + begun) // between, per_epoch)
    # Every n-th epoch is validated, counted from 1; the one that the steps cut short may be one of them.
    in_last = begun // between if (whole_epochs + 1) % every_n_epochs == 0 else 0
    return Length(steps, whole_epochs // every_n_epochs * (batches // between) + in_last, per_epoch)


def _check_devices(cli: LitCLI) -> None:
    """Refuse a training over several nodes, and a batch that its devices cannot share: each trial would fail."""
    if (nodes := cli.config["trainer"]["num_nodes"]) > 1:
        raise UsageError(
            f"trainer.num_nodes {nodes}: a trial runs on one node; use more of its GPUs with trainer.devices, and"
            " more nodes with `lit-mnist submit --array N`, whose N tasks share the study"
        )
    cli.datamodule.check_batch_size(count_devices(cli.config["trainer"]["devices"]) or 1)


def _check_metrics(spec: Spec, cli: LitCLI) -> None:
    """Refuse objectives and constraints that a fit of the model does not end with."""
    image = torch.rand(2, *cli.datamodule.image_shape)
    # Two random images and the labels 0 and 1, which every dataset has.
    names = cli.model.val_metric_names(Batch(image, image, torch.tensor([0, 1])))
    # `best/…` is the best value of the monitored metric, which a fit returns beside the last ones.
    known = [*names, f"best/{cli.model.monitor}", *OWN_METRICS]
    for metric in spec.metrics:
        if metric not in known:
            raise UsageError(
                f"metric {metric}: {type(cli.model).__name__} ends with none of that name"
                f"{nearest(metric, known)}; there are {', '.join(known)}"
            )


def _check_length(spec: Spec, length: Length) -> None:
    """Refuse a training that ends before its first validation, if objectives or constraints are measured there."""
    needed = [metric for metric in spec.metrics if metric not in OWN_METRICS]
    if needed and length.validations == 0:
        steps = "1 step" if length.steps == 1 else f"{length.steps:,} steps"
        raise UsageError(
            f"training ends after {steps}, before its first validation, so that there is no {needed[0]}: raise"
            " trainer.max_steps or trainer.max_epochs, or lower trainer.val_check_interval"
        )
