"""Sources: trainings before a trial, such as that of an encoder, each done once for all trials that share it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.parameters import Plain
from lit_mnist.sweeps.search.strict_model import StrictModel
from lit_mnist.training.stages import Checkpoint, Stage

SIZES = "model.hidden_sizes"
BELOW = "--model.below_checkpoint"
# Flags that the sweep sets for each trial: with one value for all trials, every seed would write to the same run.
SET_BY_SWEEP = ("seed_everything", "config", "tracking.experiment", "tracking.name")


def _check_flags(flags: dict[str, Any]) -> dict[str, Any]:
    for name in flags:
        if name in SET_BY_SWEEP:
            raise ValueError(f"{name} is set by the sweep; seeds and repeats choose the seeds")
        if name.startswith("data.test_"):
            raise ValueError(f"{name} has no effect: a sweep never reads test images")
    return flags


def _named(share: Any) -> Any:
    """Convert a list of names to a mapping from each name to itself."""
    return {name: name for name in share} if isinstance(share, list) else share


Flags = Annotated[dict[str, Any], AfterValidator(_check_flags)]
"""Flags of `fit` by their dotted names."""


class Source(StrictModel):
    """The training whose checkpoint a trial starts from.

    With `layers`, it is a greedily trained stack: `config` contains `{depth}`, and stage k trains the first k of
    the trial's hidden sizes, starting from the checkpoint of stage k - 1.
    """

    config: str
    flags: Flags = Field(default={})
    flag: str = "model.encoder_checkpoint"
    """The flag of the trial that gets the checkpoint's path."""
    take: Checkpoint = "best"
    share: Annotated[dict[str, str], BeforeValidator(_named)] = Field(default={})
    """Fields of the trial whose values are also used for the source, and their names in the source."""
    layers: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Source":
        if self.layers != ("{depth}" in self.config):
            raise ValueError("config: {depth} in its name goes with layers: true, and layers: true with it")
        return self


def source_stage(source: Source, point: Mapping[str, Plain], flags: tuple[str, ...]) -> Stage:
    """The source stage of the trial with `point` and the fixed flags `flags`.

    Raises:
        UsageError: the hidden sizes of a stack are in neither of them.

    """
    # All fields of the trial by name: the fixed flags, overridden by the point.
    values = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    values |= {name: as_flag_value(value) for name, value in point.items()}
    own = list(as_flags(source.flags))
    for here, there in source.share.items():
        if here in values:  # for a field that does not apply to this point, the source's own configuration counts
            own += [f"--{there}", values[here]]
    if not source.layers:
        return Stage(source.config, tuple(own))
    if SIZES not in values:
        raise UsageError(f"source.layers: neither flags nor space have {SIZES}")
    # A stack: for [300, 100], layer_1 with [300], and then, from its checkpoint, layer_2 with [300, 100].
    sizes = json.loads(values[SIZES])
    stage: Stage | None = None
    for depth in range(1, len(sizes) + 1):
        # Each stage has one more layer than the stage below it, and starts from that stage's checkpoint.
        layers = (f"--{SIZES}", json.dumps(sizes[:depth]), *own)
        stage = Stage(source.config.format(depth=depth), layers, source=stage, source_flag=BELOW)
    assert stage is not None, "lists of sizes are never empty"
    return stage


def as_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Convert dotted names and values to flags; names of classes come before their fields."""
    ordered = sorted(values.items(), key=lambda item: "." in item[0])
    return tuple(part for name, value in ordered for part in (f"--{name}", as_flag_value(value)))


def as_flag_value(value: Any) -> str:
    """Convert a value to its command-line form."""
    return value if isinstance(value, str) else json.dumps(value, default=str)  # default: YAML may read a date
