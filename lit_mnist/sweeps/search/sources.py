"""What is trained before a trial, once for all trials that share it: the stages below."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.fields import Fields, as_kind, one_of
from lit_mnist.sweeps.search.parameters import Plain
from lit_mnist.training.stages import Checkpoint, Stage

SIZES = "model.hidden_sizes"
BELOW = "--model.below_checkpoint"
FIXED = ("seed_everything", "config", "tracking.experiment", "tracking.name")
"""What the sweep itself sets."""


@dataclass(frozen=True)
class Source:
    """What a trial starts from.

    With `layers` it is a stack, trained greedily: `config` holds `{depth}`, and stage k trains the first k of the
    trial's hidden sizes on the checkpoint of stage k - 1.
    """

    config: str
    flags: tuple[str, ...] = ()
    flag: str = "--model.encoder_checkpoint"
    """Of the trial's, which the checkpoint's path is given to."""
    take: Checkpoint = "best"
    share: tuple[tuple[str, str], ...] = ()
    """Names of the point or the flags whose values the source gets, and what they are called there."""
    layers: bool = False


def parse_source(content: Mapping[str, Any]) -> Source:
    """The source in a specification.

    Raises:
        UsageError: names what is wrong.

    """
    fields = Fields("source", content)
    share = fields.values.get("share") or {}
    fields.known.append("share")
    pairs = share if isinstance(share, dict) else {name: name for name in as_kind("source.share", share, list)}
    source = Source(
        config=fields.take("config", str, required=True),
        flags=flags_of(fields.take("flags", dict, {}), "source.flags"),
        flag=f"--{fields.take('flag', str, 'model.encoder_checkpoint')}",
        take=one_of("source.take", fields.take("take", str, "best"), ("best", "last")),  # type: ignore[arg-type]
        share=tuple((str(here), str(there)) for here, there in pairs.items()),
        layers=fields.take("layers", bool, False),
    )
    fields.done()
    if source.layers != ("{depth}" in source.config):
        raise UsageError("source.config: {depth} in its name goes with layers: true, and layers: true with it")
    return source


def source_stage(source: Source, point: Mapping[str, Plain], flags: tuple[str, ...]) -> Stage:
    """The stages below the trial of `point`, whose other values are in `flags`.

    Raises:
        UsageError: neither has what the source shares.

    """
    values = {**_values(flags), **{name: written(value) for name, value in point.items()}}
    shared: list[str] = []
    for here, there in source.share:
        if here in values:  # one that does not apply to this point is left to the source's own configuration
            shared += [f"--{there}", values[here]]
    if not source.layers:
        return Stage(source.config, (*source.flags, *shared))
    sizes = json.loads(values[one_of("source.layers", SIZES, values)])
    stage: Stage | None = None
    for depth in range(1, len(sizes) + 1):
        own = ("--" + SIZES, json.dumps(sizes[:depth]), *source.flags, *shared)
        stage = Stage(source.config.format(depth=depth), own, source=stage, source_flag=BELOW)
    assert stage is not None, "lists of sizes are never empty"
    return stage


def flags_of(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Dotted names and values as flags, classes before what belongs to them.

    Raises:
        UsageError: a name that the sweep sets itself, or that would have no effect.

    """
    for name in values:
        if name in FIXED:
            raise UsageError(f"{where}: {name} is set by the sweep; seeds and repeats choose the seeds")
        if name.startswith("data.test_"):
            raise UsageError(f"{where}: {name} has no effect: a sweep never reads test images")
    ordered = sorted(values.items(), key=lambda item: "." in item[0])
    return tuple(part for name, value in ordered for part in (f"--{name}", written(value)))


def written(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _values(flags: tuple[str, ...]) -> dict[str, str]:
    return {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
