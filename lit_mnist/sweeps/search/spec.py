"""A sweep's specification: what is trained, which parameters are varied, the objectives, and the limits.

The rest of the program uses `Spec`; `spec_file.SpecFile` has the keys of the YAML file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from lit_mnist.errors import UsageError
from lit_mnist.strict_yaml import load_yaml
from lit_mnist.sweeps.search.parameters import Plain
from lit_mnist.sweeps.search.sources import Source, as_flags, source_stage
from lit_mnist.sweeps.search.space import Space
from lit_mnist.sweeps.search.spec_file import Constraint, KeepCheckpoints, Objective, SpecFile
from lit_mnist.sweeps.search.strict_model import validate
from lit_mnist.training.stages import Stage

OWN_METRICS = ("parameters", "seconds")
"""Metrics of every trial in addition to the model's: number of trainable parameters, and seconds of training."""


@dataclass(frozen=True)
class Spec:
    """The specification of a sweep.

    Raises:
        UsageError: sampler or pruner do not work with the space, the objectives or the number of trials.

    """

    name: str
    config: str
    flags: tuple[str, ...]
    """Flags of `fit` that are the same in every trial."""
    space: Space
    objectives: tuple[Objective, ...]
    sampler: str
    sampler_options: Mapping[str, Any]
    seed: int
    """Seed of the sampler."""
    pruner: str
    pruner_options: Mapping[str, Any]
    trials: int
    """Size of a new study unless `--trials` is given; the size of a stored study is its attribute `trials`."""
    hours: float | None
    constraints: tuple[Constraint, ...]
    seeds: tuple[int, ...]
    """Seeds of training: each point is trained with each of them."""
    source: Source | None
    points: tuple[Mapping[str, Plain], ...]
    """Points to try first."""
    text: str
    """The YAML text of the specification."""
    content: Mapping[str, Any]
    """The parsed YAML."""
    keep_checkpoints: KeepCheckpoints = "best"
    """Checkpoints that a trial keeps after its end; this may change within a study."""

    def __post_init__(self) -> None:
        # In __post_init__, so that `dataclasses.replace` with the values of a stored study is checked too.
        self.check_trials(self.trials)
        _check_sampler(self)
        _check_pruner(self)

    def stored(self) -> dict[str, Any]:
        """The settings that must not change within a study, as plain JSON, for storing and comparing.

        The keys are those of version 0.1, in which objectives were called goals.
        """
        return {
            "name": self.name,
            "config": self.config,
            "flags": list(self.flags),
            # Not `objectives`, since studies of version 0.1 have this key.
            "goals": [objective.model_dump() for objective in self.objectives],
            "sampler": self.sampler,
            "sampler_options": dict(self.sampler_options),
            "seed": self.seed,
            "pruner": self.pruner,
            "pruner_options": dict(self.pruner_options),
            "constraints": [constraint.model_dump() for constraint in self.constraints],
            "seeds": list(self.seeds),
            "points": [dict(point) for point in self.points],
            "space": self.content["space"],
            "source": self.content.get("source"),
        }

    @property
    def metrics(self) -> list[str]:
        """The metrics that every trial must have at its end: those of the objectives, then of the constraints."""
        return [*(each.metric for each in self.objectives), *(each.metric for each in self.constraints)]

    def check_trials(self, trials: int) -> None:
        """Check a number of trials.

        Raises:
            UsageError: there are fewer than 1, or more than the grid has points.

        """
        if trials < 1:
            raise UsageError(f"trials: {trials} must be at least 1")
        if (most := self.most_trials()) is not None and trials > most:
            raise UsageError(f"trials: {trials}, but the grid has {most} points")

    def most_trials(self) -> int | None:
        """Return how many trials the study can have: the points of a grid, or None if there is no limit."""
        if self.sampler != "grid":
            return None
        grid = self.space.grid()
        # Given points are tried first; those that are also in the grid are not repeated.
        return len(grid) + sum(self.space.encode(point) not in grid for point in self.points)


def load_spec(path: str | Path) -> Spec:
    """Read the specification in a file.

    Raises:
        UsageError: the file cannot be read, or something in it is wrong; the message begins with the path.

    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file") from None
    except FileNotFoundError as error:
        there = ", ".join(sorted(str(found) for found in Path("sweeps").glob("*.yaml")))
        raise UsageError(f"{path}: {error.strerror}" + (f"; there are {there}" if there else "")) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return parse_spec(text, Path(path).stem)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def parse_spec(text: str, name: str) -> Spec:
    """Read a specification from a YAML text; `name` is the study's name unless the text has one.

    Raises:
        UsageError: something is wrong; the message names the key.

    """
    # First check each key and its type, then combinations of keys.
    content = load_yaml(text)
    if content is None:
        raise UsageError(
            "it is empty: a spec needs config, metric, direction, trials and space; see sweeps/*.yaml"
        )
    file = validate(SpecFile, content)
    space = Space(file.space)
    trials = file.trials
    if trials is None:
        # Without a number of trials, the whole grid is tried.
        if file.sampler.name != "grid":
            raise UsageError("trials is missing: how many there are to be")
        trials = len(space.grid())
    # If a flag were given twice, its value would depend on the order of the flags.
    for flag in file.flags:
        if flag in space.names:
            raise UsageError(f"{flag} stands both in flags and in space: take it out of one")
    if file.source is not None and file.source.flag in (*file.flags, *space.names):
        raise UsageError(f"{file.source.flag} is given by source: take it out of flags and space")
    return Spec(
        name=file.study or name,
        config=file.config,
        flags=as_flags(file.flags),
        space=space,
        objectives=_objectives(file),
        sampler=file.sampler.name,
        sampler_options=file.sampler.model_dump(exclude={"name", "seed"}),
        seed=file.seed if file.sampler.seed is None else file.sampler.seed,
        pruner=file.pruner.name,
        pruner_options=file.pruner.model_dump(exclude={"name"}),
        trials=trials,
        hours=file.hours,
        constraints=tuple(file.constraints),
        seeds=_seeds(file),
        source=file.source,
        points=tuple(file.points),
        text=text,
        content=content,
        keep_checkpoints=file.keep_checkpoints,
    )


def trial_stage(spec: Spec, point: Mapping[str, Plain]) -> Stage:
    """The training of `point`, including the stages whose checkpoints it starts from."""
    flags = (*spec.flags, *as_flags(point))
    if spec.source is None:
        return Stage(spec.config, flags)
    # The trial starts from the checkpoint of an encoder or of the topmost layer of a stack.
    below = source_stage(spec.source, point, spec.flags)
    return Stage(spec.config, flags, source=below, source_flag=f"--{spec.source.flag}", take=spec.source.take)


def _objectives(file: SpecFile) -> tuple[Objective, ...]:
    # There are three forms: `metric` with `direction`, `objectives`, and `goals` (version 0.1).
    if file.goals is not None and file.objectives is not None:
        raise UsageError("goals and objectives are the same: take one")
    listed = file.goals if file.objectives is None else file.objectives
    if listed is not None:
        if file.metric is not None or file.direction is not None:
            raise UsageError("metric and objectives both say what is looked for: take one")
        if not listed:
            raise UsageError("objectives: there is none")
        return tuple(listed)
    if file.metric is None:
        raise UsageError("metric is missing: what is looked for, such as val/acc")
    if file.direction is None:
        raise UsageError(f"direction is missing: maximize or minimize {file.metric}")
    return (Objective(metric=file.metric, direction=file.direction),)


def _seeds(file: SpecFile) -> tuple[int, ...]:
    if file.seeds is None:
        return tuple(range(file.seed, file.seed + (file.repeats or 1)))
    if file.repeats is not None:
        raise UsageError("repeats and seeds both say how often a point is trained: take one")
    if not file.seeds or len(set(file.seeds)) < len(file.seeds):
        raise UsageError(f"seeds: {file.seeds} must be different seeds")
    return tuple(file.seeds)


def _check_sampler(spec: Spec) -> None:
    """Check for settings that would cause errors of the sampler in the middle of a study."""
    # `encode` checks that the point is in the space and has a value for each parameter that applies.
    for point in spec.points:
        spec.space.encode(point)
    # CMA-ES works on a fixed set of intervals. Optuna samples all other parameters independently, so with these
    # spaces it would be a random search.
    if spec.sampler == "cmaes":
        dimensions = spec.space.dimensions()
        intervals = [d for d in dimensions if not isinstance(d.distribution, CategoricalDistribution)]
        if len(intervals) < 2:
            raise UsageError(
                f"sampler: cmaes needs two or more intervals, and space has {len(intervals)}: take tpe"
            )
        if conditional := spec.space.conditional():
            raise UsageError(
                f"sampler: cmaes needs intervals that always apply, unlike {conditional[0]}: take tpe"
            )
        if len(spec.objectives) > 1:
            raise UsageError(f"sampler: cmaes cannot look for {len(spec.objectives)} objectives: take tpe")
    if spec.sampler == "grid":
        return
    for name, content in spec.content["space"].items():
        # In the original content, since `points` may also be a key of the depth or the width of layer sizes.
        if any("points" in part for part in (content, *content.values()) if isinstance(part, dict)):
            raise UsageError(f"space: {name}: points has no effect on the sampler {spec.sampler}")


def _check_pruner(spec: Spec) -> None:
    if spec.pruner == "none":
        return
    if len(spec.objectives) > 1:
        raise UsageError(
            f"pruner: {spec.pruner} needs a single objective, and there are {len(spec.objectives)}: take none"
        )
    if spec.pruner == "wilcoxon":
        # With n differences of the same sign, the smallest p-value of the one-sided test is 2 to the power of -n.
        # Pruning after the last seed would save nothing.
        threshold = spec.pruner_options["p_threshold"]
        needed = max(int(spec.pruner_options["n_startup_steps"]), math.floor(-math.log2(threshold)) + 1)
        if len(spec.seeds) <= needed:
            raise UsageError(
                f"pruner: wilcoxon compares seeds, and cannot end a trial before {needed} of them are trained:"
                f" repeats must be at least {needed + 1}, and there {'is 1' if len(spec.seeds) == 1 else 'are'}"
                + ("" if len(spec.seeds) == 1 else f" {len(spec.seeds)}")
            )
        return
    # `parameters`, `seconds` and `best/…` exist only at the end of a training, too late for pruning.
    if not (metric := spec.objectives[0].metric).startswith("val/"):
        raise UsageError(f"pruner: {spec.pruner} needs a metric of every validation, val/…, and not {metric}")
