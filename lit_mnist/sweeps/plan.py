"""`lit-mnist sweep SPEC.yaml --plan`: check a sweep, and estimate its time and disk, without training."""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from lit_mnist.errors import UserError
from lit_mnist.sweeps.search.parameters import Choice, LayerSizes, Number
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.search.validation import (
    ProbePoint,
    StageBuilder,
    TooLargeError,
    check,
    point_in_errors,
    warn_too_large,
)
from lit_mnist.sweeps.study.storage import default_storage, open_storage
from lit_mnist.sweeps.study.study import check_stored
from lit_mnist.sweeps.timing import Cost, measure, worker_threads
from lit_mnist.terminal import print_table, seconds
from lit_mnist.training.stages import Stage

START_SECONDS = 14
"""Start-up and figures at the end, once per sweep; measured on two cores (docs/development.md)."""


def plan(spec: Spec, workers: int, url: str | None = None, trials: int | None = None) -> None:
    """Check everything that can be checked without training, and print the cost of the sweep; stores nothing.

    Args:
        spec: The specification.
        workers: Number of processes that will share the work.
        url: Where studies are kept; None for the default.
        trials: Size of the study; None for that in the specification.

    Raises:
        UsageError: the specification is wrong, or differs from that of the stored study of the same name.
        UserError: no probe point fits into this machine's memory.

    """
    url = url or default_storage()
    count = spec.trials if trials is None else trials
    spec.check_trials(count)
    exists = "://" in url or Path(url).exists()  # opening a journal file would create it
    stored = check_stored(open_storage(url), spec, count) if exists else ""
    probe_points, costs = _measure(spec, check(spec), workers)
    if not probe_points:
        raise UserError("no kind of point fits into this machine's memory: plan where the trials will be trained")
    rows = _estimates(spec, count, probe_points, costs, workers)
    print_table(["study", f"{spec.name} ({stored or 'new'})"], [[name, text] for name, text in rows])
    print()
    varied = []
    for name, parameter in spec.space.parameters.items():
        conditions = [f"{key} is {' or '.join(map(_shown, v))}" for key, v in parameter.conditions().items()]
        also = [f"{key} = {factor:g} times it" for key, factor in parameter.also.items()]
        varied.append([name, _values(parameter, spec.sampler == "grid"), "; ".join([*conditions, *also])])
    print_table(["varied", "values", "where"], varied)


def _measure(
    spec: Spec, probe_points: list[ProbePoint], workers: int
) -> tuple[list[ProbePoint], dict[Stage, Cost]]:
    """Time each stage of the probe points once; returns the points that fit into memory, and the costs."""
    # Stages are compared by content, so equal trainings of different points are timed once.
    fitting: list[ProbePoint] = []
    costs: dict[Stage, Cost] = {}
    with StageBuilder(spec.seeds[0]) as build, worker_threads(workers):
        for probe in probe_points:
            try:
                for stage in (probe.stage, *_below(probe.stage)):
                    if stage not in costs:
                        with point_in_errors(probe.point):
                            costs[stage] = measure(build(stage))
            except TooLargeError as error:
                warn_too_large(error)
            else:
                fitting.append(probe)
    return fitting, costs


def _below(stage: Stage) -> list[Stage]:
    """The stages that the stage starts from, directly or not."""
    return [] if stage.source is None else [stage.source, *_below(stage.source)]


def _estimates(
    spec: Spec, count: int, probe_points: list[ProbePoint], costs: Mapping[Stage, Cost], workers: int
) -> list[tuple[str, str]]:
    """The rows of the plan's first table: trials cost the mean of the probe points, sources are trained once.

    Args:
        spec: The specification.
        count: Size of the study.
        probe_points: The points that fit into memory.
        costs: The cost of each of their stages.
        workers: Number of processes that share the work.

    """
    trials, seeds = [costs[probe.stage] for probe in probe_points], len(spec.seeds)
    # Each source is counted once, since trials share it.
    sources = {stage for probe in probe_points for stage in _below(probe.stage)}
    trial_seconds = statistics.fmean(cost.seconds for cost in trials) * seeds
    source_seconds = sum(costs[stage].seconds for stage in sources) * seeds
    # Checkpoints per trial; a source keeps its best and its last one.
    kept = {"all": 2, "best": 1, "none": 0}[spec.keep_checkpoints]
    checkpoints = kept * count * statistics.fmean(cost.bytes for cost in trials)
    disk = seeds * (checkpoints + 2 * sum(costs[stage].bytes for stage in sources))

    number = f"{count:,}" + (f" of {len(spec.space.grid()):,} in the grid" if spec.sampler == "grid" else "")
    each = f", each with seeds {', '.join(map(str, spec.seeds))}" if seeds > 1 else ""
    rows = [
        ("config", spec.config),
        ("looks for", ", ".join(f"{objective.direction[:3]} {objective.metric}" for objective in spec.objectives)),
        ("sampler, pruner", f"{spec.sampler}, {spec.pruner}"),
        ("trials", number + each),
        ("probe points", f"{len(probe_points)}, each built and tried for a few steps"),
    ]
    if sources:
        stages = "1 stage" if len(sources) == 1 else f"{len(sources)} stages"
        rows.append(("trained before", f"{stages}, about {seconds(source_seconds)}"))
    who = "1 worker" if workers == 1 else f"{workers} workers"
    # Sources are trained one after another, since each builds on the previous one. Each worker trains whole
    # trials, so 3 trials take 2 workers as long as 4 trials.
    total = START_SECONDS + source_seconds + trial_seconds * math.ceil(count / workers)
    hours = f", at most {spec.hours:g} h" if spec.hours is not None else ""
    pruned = "; what is pruned ends earlier, which is not counted" if spec.pruner != "none" else ""
    return [
        *rows,
        ("a trial", f"about {seconds(trial_seconds)}"),
        ("in all", f"about {seconds(total)} with {who}{hours}{pruned}"),
        ("disk", f"about {disk / 1e6:,.1f} MB of checkpoints"),
    ]


def _values(parameter: Number | Choice | LayerSizes, on_grid: bool) -> str:
    """The possible values of a parameter, as text."""
    if isinstance(parameter, Choice):
        return ", ".join(map(_shown, parameter.choices))
    if isinstance(parameter, LayerSizes):
        depth, width = _values(parameter.depth, on_grid), _values(parameter.width, on_grid)
        return f"depth {depth}; width {width}, {parameter.rule}"
    points = f", {len(parameter.grid_points or ())} points" if on_grid else ""
    return f"{parameter.low:g} to {parameter.high:g}{' (logarithmic)' if parameter.log else ''}{points}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
