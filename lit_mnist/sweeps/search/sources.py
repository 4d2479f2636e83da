"""Sources: what is trained before a trial, once for all trials that share it, such as an encoder."""

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
# The sweep gives each trial its own: a value for all of them would put every seed into one run.
SET_BY_SWEEP = ("seed_everything", "config", "tracking.experiment", "tracking.name")


def _check_flags(flags: dict[str, Any]) -> dict[str, Any]:
    for name in flags:
        if name in SET_BY_SWEEP:
            raise ValueError(f"{name} is set by the sweep; seeds and repeats choose the seeds")
        if name.startswith("data.test_"):
            raise ValueError(f"{name} has no effect: a sweep never reads test images")
    return flags


def _named(share: Any) -> Any:
    """A list of names as a mapping of each to itself."""
    return {name: name for name in share} if isinstance(share, list) else share


Flags = Annotated[dict[str, Any], AfterValidator(_check_flags)]
"""Flags of `fit` by their dotted names."""


class Source(StrictModel):
    """What a trial starts from.

    With `layers` it is a stack that is trained greedily: `config` contains `{depth}`, and stage k trains the first
    k of the trial's hidden sizes on the checkpoint of stage k - 1.
    """

    config: str
    flags: Flags = Field(default={})
    flag: str = "model.encoder_checkpoint"
    """The flag of the trial that gets the checkpoint's path."""
    take: Checkpoint = "best"
    share: Annotated[dict[str, str], BeforeValidator(_named)] = Field(default={})
    """Fields of the trial whose values the source gets too, and their names there."""
    layers: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Source":
        if self.layers != ("{depth}" in self.config):
            raise ValueError("config: {depth} in its name goes with layers: true, and layers: true with it")
        return self


def source_stage(source: Source, point: Mapping[str, Plain], flags: tuple[str, ...]) -> Stage:
    """The stages below the trial of `point`, all of whose other values are in `flags`.

    Raises:
        UsageError: neither gives the hidden sizes of a stack.

    """
    # All fields of the trial by name: the fixed flags, then those of the point.
    values = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    values |= {name: as_flag_value(value) for name, value in point.items()}
    own = list(as_flags(source.flags))
    for here, there in source.share.items():
        if here in values:  # one that does not apply to this point is left to the source's own configuration
            own += [f"--{there}", values[here]]
    if not source.layers:
        return Stage(source.config, tuple(own))
    if SIZES not in values:
        raise UsageError(f"source.layers: neither flags nor space have {SIZES}")
    # A stack: [300, 100] is layer_1 with [300], and on its checkpoint layer_2 with [300, 100].
    sizes = json.loads(values[SIZES])
    stage: Stage | None = None
    for depth in range(1, len(sizes) + 1):
        # Each stage has one layer more than the one below, whose checkpoint it starts from.
        layers = (f"--{SIZES}", json.dumps(sizes[:depth]), *own)
        stage = Stage(source.config.format(depth=depth), layers, source=stage, source_flag=BELOW)
    assert stage is not None, "lists of sizes are never empty"
    return stage


def as_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted names and values as flags; names of classes come before those of their fields."""
    ordered = sorted(values.items(), key=lambda item: "." in item[0])
    return tuple(part for name, value in ordered for part in (f"--{name}", as_flag_value(value)))


def as_flag_value(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)  # YAML may have made a date of it
