"""Checks of a specification without training: the models of all probe points are built for their data."""

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
    """Number of validations of that training unless it ends early."""


@dataclass(frozen=True)
class Length:
    """The length of a training unless it ends early."""

    steps: int
    """Optimiser steps."""
    validations: int
    per_epoch: int
    """Optimiser steps per epoch."""


class TooLargeError(UserError):
    """A model does not fit into this machine's memory."""


def check(spec: Spec) -> list[ProbePoint]:
    """Build the model of every probe point; return those that fit into this machine's memory.

    The machine that starts a sweep, such as a cluster's login node, is often smaller than the machines that train.
    So a point that does not fit only causes a warning. If it does not fit there either, its trials fail, and the
    others continue.

    Raises:
        UsageError: a point is invalid for the model, the data or the objectives; the message names the point.

    """
    # One seed is enough, since seeds affect only weights and order.
    probe_points = []
    with StageBuilder(spec.seeds[0]) as build:
        for point in spec.space.probe_points():
            stage = trial_stage(spec, point)
            try:
                with point_in_errors(point):
                    cli = build(stage)
                    length = training_length(cli)
                    _check_metrics(spec, cli, length)
            except TooLargeError as error:
                warn_too_large(error)
            else:
                probe_points.append(ProbePoint(point, stage, length.validations))
    return probe_points


def check_machine(spec: Spec, probe_points: Sequence[ProbePoint]) -> None:
    """Check that at least one training of the study can start on this machine; otherwise every trial would fail.

    This is not part of `check`, since a study may be planned on a machine that does not train it.

    Args:
        spec: The specification.
        probe_points: The result of `check`.

    Raises:
        UsageError: the Trainer cannot be created for any probe point, for example because there is no GPU.

    """
    # One point that can be trained here is enough.
    errors: list[UsageError] = []
    tried: list[dict[str, Plain]] = []
    for probe in probe_points:
        settings = {name: value for name, value in probe.point.items() if name.startswith("trainer.")}
        # Most points have the same settings of the Trainer, which are tried only once.
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
    """Warn that a point does not fit into memory, and that its trials may fail."""
    warn(f"not enough memory here: {error}; where the sweep trains, such trials fail unless there is more")


class StageBuilder:
    """Builds stages from checkpoints of their untrained sources, so that shapes and names are checked too.

    The builder is a context manager: the checkpoints are in a temporary folder, which is removed at its end.

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
        """Build the stage's model and its data module, and set up the data for fitting."""
        arguments = stage.arguments("full", self.seed)
        if stage.source is not None:
            if stage.source not in self._checkpoints:
                weights = self(stage.source).model.state_dict()  # writes the checkpoints of the stages below
                path = Path(self._folder.name) / f"{len(self._checkpoints)}.ckpt"
                # In the form of Lightning's checkpoints, of which only the weights are read.
                torch.save({"state_dict": weights}, path)
                self._checkpoints[stage.source] = path
            arguments += [stage.source_flag, str(self._checkpoints[stage.source])]
        cli = LitCLI(arguments)
        trainer = cli.config["trainer"]
        # Settings with which every trial would fail: several nodes, or a batch that the devices cannot share.
        if (nodes := trainer["num_nodes"]) > 1:
            raise UsageError(
                f"trainer.num_nodes {nodes}: a trial runs on one node; use more of its GPUs with trainer.devices,"
                " and more nodes with `lit-mnist submit --array N`, whose N tasks share the study"
            )
        cli.datamodule.check_batch_size(count_devices(trainer["devices"]) or 1)
        check_fit(cli)
        # Reads the images only once: the data module keeps the last split, which most points share.
        cli.datamodule.setup("fit")
        return cli


@contextmanager
def point_in_errors(point: Mapping[str, Plain]) -> Iterator[None]:
    """Append the point to the message of an error.

    Raises:
        TooLargeError: memory could not be allocated.
        UserError: the point is invalid for the model, the data or the objectives.

    """
    try:
        yield
    except (UserError, RuntimeError, MemoryError) as error:  # RuntimeError: torch found shapes that do not match
        # The message names the point, since an error of torch does not show which point caused it.
        values = [f"{name} {v if isinstance(v, str) else json.dumps(v)}" for name, v in point.items()]
        text = f"{one_line(error)} (at {', '.join(values)})"
        # torch raises a plain RuntimeError if the CPU's memory is exhausted.
        is_plain = isinstance(error, RuntimeError | UserError) and "can't allocate memory" in str(error)
        if is_plain or isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise TooLargeError(text) from None
        raise (type(error) if isinstance(error, UserError) else UsageError)(text) from None


def training_length(cli: LitCLI) -> Length:
    """Steps and validations of the training that `cli` describes, by the rules of Lightning's loops.

    The data module must be set up. With several devices, each gets its share of the batches. Without `max_epochs`
    and `max_steps`, one epoch is assumed.
    """
    trainer = cli.config["trainer"]
    if trainer["fast_dev_run"]:
        return Length(int(trainer["fast_dev_run"]), 1, int(trainer["fast_dev_run"]))
    # Batches of an epoch, and the resulting optimiser steps.
    batches = len(cli.datamodule.train_dataloader()) // (count_devices(trainer["devices"]) or 1)
    for limit in (trainer["limit_train_batches"], trainer["overfit_batches"] or None):
        if limit is not None:
            # For Lightning, an integer is a number of batches, and a fraction is a share of the epoch.
            batches = min(batches, limit if isinstance(limit, int) else int(batches * limit))
    batches = max(1, batches)
    # At the end of an epoch, Lightning also steps with the gradients accumulated so far.
    accumulated = max(1, trainer["accumulate_grad_batches"])
    per_epoch = math.ceil(batches / accumulated)
    # The limit that comes first counts; -1 means no limit in Lightning.
    max_epochs, max_steps = (
        None if n is None or n < 0 else n for n in (trainer["max_epochs"], trainer["max_steps"])
    )
    steps = per_epoch * (1 if max_epochs is None else max_epochs)
    if max_steps is not None:
        steps = max_steps if max_epochs is None else min(steps, max_steps)
    if trainer["limit_val_batches"] == 0 or not cli.datamodule.sizes()["val"]:
        return Length(steps, 0, per_epoch)

    # The number of validations.
    whole_epochs, rest = divmod(steps, per_epoch)
    interval = 1.0 if trainer["val_check_interval"] is None else trainer["val_check_interval"]
    if not isinstance(interval, int | float):  # a time, for which the number depends on the machine
        return Length(steps, max(1, whole_epochs), per_epoch)
    between = interval if isinstance(interval, int) else max(1, int(batches * interval))
    begun = min(rest * accumulated, batches)  # batches of an incomplete last epoch
    if (every_n_epochs := trainer["check_val_every_n_epoch"]) is None:  # batches are counted across epochs
        return Length(steps, (whole_epochs * batches + begun) // between, per_epoch)
    # Every n-th epoch is validated, counted from 1; an incomplete last epoch may be one of them.
    in_last = begun // between if (whole_epochs + 1) % every_n_epochs == 0 else 0
    return Length(steps, whole_epochs // every_n_epochs * (batches // between) + in_last, per_epoch)


def _check_metrics(spec: Spec, cli: LitCLI, length: Length) -> None:
    """Check that a fit of the model ends with the metrics of all objectives and constraints."""
    image = torch.rand(2, *cli.datamodule.image_shape)
    # Two random images and the labels 0 and 1, which every dataset has.
    names = cli.model.val_metric_names(Batch(image, image, torch.tensor([0, 1])))
    # `best/…` is the best value of the monitored metric, which a fit returns in addition to the last values.
    known = [*names, f"best/{cli.model.monitor}", *OWN_METRICS]
    for metric in spec.metrics:
        if metric not in known:
            raise UsageError(
                f"metric {metric}: {type(cli.model).__name__} ends with none of that name"
                f"{nearest(metric, known)}; there are {', '.join(known)}"
            )

    # All other metrics are measured in validations.
    needed = [metric for metric in spec.metrics if metric not in OWN_METRICS]
    if needed and length.validations == 0:
        steps = "1 step" if length.steps == 1 else f"{length.steps:,} steps"
        raise UsageError(
            f"training ends after {steps}, before its first validation, so that there is no {needed[0]}: raise"
            " trainer.max_steps or trainer.max_epochs, or lower trainer.val_check_interval"
        )
