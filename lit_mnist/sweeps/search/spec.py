"""A sweep's specification: what is trained, what is varied, what is looked for, for how long."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.fields import Fields, as_kind, one_of, read_yaml
from lit_mnist.sweeps.search.parameters import Plain
from lit_mnist.sweeps.search.samplers import PRUNERS, SAMPLERS, check_search
from lit_mnist.sweeps.search.sources import Source, flags_of, parse_source, source_stage
from lit_mnist.sweeps.search.space import Space
from lit_mnist.training.stages import Stage

Direction = Literal["maximize", "minimize"]
OWN_METRICS = ("parameters", "seconds")
"""Beside those that fit ends with: trainable parameters, and seconds of training."""


@dataclass(frozen=True)
class Objective:
    """A metric, and which way is better."""

    metric: str
    direction: Direction


@dataclass(frozen=True)
class Constraint:
    """A metric that must not go above a bound."""

    metric: str
    at_most: float


@dataclass(frozen=True)
class Spec:
    """What `lit-mnist sweep` is to do."""

    name: str
    config: str
    flags: tuple[str, ...]
    """Fit's, the same in every trial."""
    space: Space
    objectives: tuple[Objective, ...]
    sampler: str
    sampler_options: Mapping[str, Any]
    seed: int
    """Of the sampler."""
    pruner: str
    pruner_options: Mapping[str, Any]
    trials: int
    hours: float | None
    constraints: tuple[Constraint, ...]
    seeds: tuple[int, ...]
    """Of training: each point is trained with every one of them."""
    source: Source | None
    text: str
    """The YAML that all this was read from."""
    points: tuple[Mapping[str, Plain], ...] = ()
    """What to try first; `space.encode` makes Optuna's parameters of each."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The space and the source as they stand in the YAML."""

    def __post_init__(self) -> None:
        check_search(self)

    def stored(self) -> dict[str, Any]:
        """Plain JSON of all that must stay the same within a study."""
        left_out = ("space", "source", "objectives", "text", "fields", "trials", "hours")
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        # Studies of version 0.1 have stored their objectives as "goals".
        kept |= {"goals": [asdict(goal) for goal in self.objectives], "flags": list(self.flags)}
        kept |= {"constraints": [asdict(constraint) for constraint in self.constraints]}
        kept |= {"seeds": list(self.seeds), "points": [dict(point) for point in self.points]}
        return kept | dict(self.fields)

    def with_trials(self, trials: int) -> "Spec":
        """The same for another number of trials."""
        return replace(self, trials=trials)


def load_spec(path: str | Path) -> Spec:
    """The specification in a file.

    Raises:
        UsageError: there is no such file, or something in it is wrong, which the message names.

    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(str(found) for found in Path("sweeps").glob("*.yaml")))
        hint = f"; there are {there}" if there else ""
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'not a text'}{hint}") from None
    try:
        return parse_spec(text, Path(path).stem)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def parse_spec(text: str, name: str) -> Spec:
    """The specification in a YAML text; `name` is the study's where the text gives none.

    Raises:
        UsageError: names what is wrong.

    """
    content = read_yaml(text)
    if content is None:
        raise UsageError(
            "it is empty: a spec needs config, metric, direction, trials and space; see sweeps/*.yaml"
        )
    top = Fields("", content)
    entries = top.take("space", dict, required=True)
    seed = top.take("seed", int, 0)
    sampler, sampler_options = _named(top, "sampler", "tpe", SAMPLERS, extra={"seed": seed})
    pruner, pruner_options = _named(top, "pruner", "none", PRUNERS)
    space, given = Space(entries), top.take("flags", dict, {})
    source = top.take("source", dict)
    spec = Spec(
        name=top.take("study", str, name),
        config=top.take("config", str, required=True),
        flags=flags_of(given, "flags"),
        space=space,
        objectives=_goals(top),
        sampler=sampler,
        seed=sampler_options.pop("seed"),
        sampler_options=sampler_options,
        pruner=pruner,
        pruner_options=pruner_options,
        trials=_trials(top, sampler, space),
        hours=top.take("hours", float),
        constraints=_constraints(top),
        seeds=_seeds(top, seed),
        source=parse_source(source) if source else None,
        text=text,
        points=tuple(as_kind("points", point, dict) for point in top.take("points", list, [])),
        fields={"space": entries, "source": source},
    )
    top.done()
    _check_overlap(spec, given)
    return spec


def trial_stage(spec: Spec, point: Mapping[str, Plain]) -> Stage:
    """The fit of `point`, with the stages whose checkpoints it starts from."""
    below = source_stage(spec.source, point, spec.flags) if spec.source else None
    stage = Stage(spec.config, (*spec.flags, *flags_of(point, "space")), source=below)
    if spec.source is None:
        return stage
    return replace(stage, source_flag=spec.source.flag, take=spec.source.take)


def _named(
    top: Fields, key: str, default: str, known: Mapping[str, Mapping[str, Any]], extra: Mapping[str, Any] = {}
) -> tuple[str, dict[str, Any]]:
    """A name with options, all of them stated; in YAML `tpe`, or `{name: tpe, n_startup_trials: 5}`."""
    content = top.values.get(key) or default
    top.known.append(key)
    fields = Fields(key, {"name": content} if isinstance(content, str) else content)
    name = one_of(key, fields.take("name", str, required=True), known)
    options = {
        option: fields.take(option, type(value), value) for option, value in {**known[name], **extra}.items()
    }
    fields.done()
    return name, options


def _goals(top: Fields) -> tuple[Objective, ...]:
    metric, direction = top.take("metric", str), top.take("direction", str)
    earlier = top.take("goals", list)  # the key's name in version 0.1
    objectives = top.take("objectives", list, earlier)
    if objectives is not None and (metric or direction):
        raise UsageError("metric and objectives both say what is looked for: take one")
    if objectives is None:
        objectives = [{name: top.values[name] for name in ("metric", "direction") if name in top.values}]
    if not objectives:
        raise UsageError("objectives: there is none")
    return tuple(
        _goal(Fields(f"objectives.{i}" if len(objectives) > 1 else "", goal))
        for i, goal in enumerate(objectives, 1)
    )


def _goal(fields: Fields) -> Objective:
    metric = _metric(fields)
    if "direction" not in fields.values:
        raise UsageError(f"{fields.name('direction')} is missing: maximize or minimize {metric}")
    direction = one_of(fields.name("direction"), fields.take("direction", str), get_args(Direction))
    fields.done()
    return Objective(metric, direction)  # type: ignore[arg-type]


def _metric(fields: Fields) -> str:
    metric: str = fields.take("metric", str, required=True)
    if metric.startswith(("test/", "best/test/")):
        raise UsageError(f"{fields.name('metric')} {metric}: a sweep never reads test images; take val/…")
    return metric


def _constraints(top: Fields) -> tuple[Constraint, ...]:
    found = []
    for i, content in enumerate(top.take("constraints", list, []), 1):
        fields = Fields(f"constraints.{i}", content)
        found.append(Constraint(_metric(fields), fields.take("at_most", float, required=True)))
        fields.done()
    return tuple(found)


def _seeds(top: Fields, first: int) -> tuple[int, ...]:
    seeds, repeats = top.take("seeds", list), top.take("repeats", int)
    if seeds is not None and repeats is not None:
        raise UsageError("repeats and seeds both say how often a point is trained: take one")
    if repeats is not None and repeats < 1:
        raise UsageError(f"repeats: {repeats} must be at least 1")
    if seeds is None:
        return tuple(range(first, first + (repeats or 1)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: {seeds} must be different seeds")
    return tuple(as_kind("seeds", seed, int) for seed in seeds)


def _trials(top: Fields, sampler: str, space: Space) -> int:
    trials: int | None = top.take("trials", int)
    if trials is not None:
        return trials
    if sampler != "grid":
        raise UsageError("trials is missing: how many there are to be")
    return len(space.grid())


def _check_overlap(spec: Spec, given: Mapping[str, Any]) -> None:
    for name in given:
        if name in spec.space.names:
            raise UsageError(f"{name} stands both in flags and in space: take it out of one")
    if spec.source and (flag := spec.source.flag.removeprefix("--")) in (*given, *spec.space.names):
        raise UsageError(f"{flag} is given by source: take it out of flags and space")
