"""`lit-mnist sweep SPEC.yaml --plan`: what a sweep would do, and what it would take."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from lit_mnist.errors import UserError
from lit_mnist.sweeps.search.parameters import Choice, Number, SearchParameter, Sizes
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.search.validation import ProbePoint, TooLargeError, at, builder, check, warn_too_large
from lit_mnist.sweeps.study.storage import default_storage, open_storage
from lit_mnist.sweeps.study.study import check_stored
from lit_mnist.sweeps.timing import Cost, measure, threads_of_a_worker
from lit_mnist.terminal import print_table, seconds
from lit_mnist.training.stages import Stage


def plan(spec: Spec, workers: int, url: str | None = None) -> None:
    """Check all that can be checked without training, and print what the sweep takes; nothing is stored.

    Args:
        spec: What is planned.
        workers: How many processes are to share the work.
        url: Where studies are kept.

    Raises:
        UsageError: something does not hold.

    """
    stored = _stored(spec, url)
    kinds, costs = _measure(spec, check(spec), workers)
    if not kinds:
        raise UserError("no kind of point fits into this machine's memory: plan where the trials will be trained")
    rows = _rows(spec, kinds, costs, workers)
    print_table(["study", f"{spec.name} ({stored})"], [[name, text] for name, text in rows])
    print()
    entries = [[name, *_described(entry, spec.sampler == "grid")] for name, entry in spec.space.entries.items()]
    print_table(["varied", "values", "where"], entries)


def _stored(spec: Spec, url: str | None) -> str:
    url = url or default_storage()
    if "://" not in url and not Path(url).exists():  # to look is no reason to make one
        return "new"
    return check_stored(open_storage(url), spec) or "new"


def _measure(spec: Spec, kinds: list[ProbePoint], workers: int) -> tuple[list[ProbePoint], dict[Stage, Cost]]:
    """The kinds that this machine can train, and the cost of each of their stages."""
    fitting: list[ProbePoint] = []
    costs: dict[Stage, Cost] = {}
    with builder(spec.seeds[0]) as build, threads_of_a_worker(workers):
        for kind in kinds:
            try:
                for stage in (kind.stage, *_below(kind.stage)):
                    if stage not in costs:
                        with at(kind.point):
                            costs[stage] = measure(build(stage))
            except TooLargeError as error:
                warn_too_large(error)
                continue
            fitting.append(kind)
    return fitting, costs


def _below(stage: Stage) -> list[Stage]:
    return [] if stage.source is None else [stage.source, *_below(stage.source)]


def _rows(spec: Spec, kinds: list[ProbePoint], costs: Mapping[Stage, Cost], workers: int) -> list[tuple[str, str]]:
    trials, seeds = [costs[kind.stage] for kind in kinds], len(spec.seeds)
    sources = {stage for kind in kinds for stage in _below(kind.stage)}
    each = statistics.fmean(cost.seconds for cost in trials) * seeds
    before = sum(costs[stage].seconds for stage in sources) * seeds
    # The best checkpoint and the last of every training.
    room = 2 * seeds * (spec.trials * statistics.fmean(cost.bytes for cost in trials)
                        + sum(costs[stage].bytes for stage in sources))  # fmt: skip
    number = f"{spec.trials:,}" + (f" of {len(spec.space.grid()):,} in the grid" if spec.sampler == "grid" else "")
    rows = [
        ("config", spec.config),
        ("looks for", ", ".join(f"{goal.direction[:3]} {goal.metric}" for goal in spec.objectives)),
        ("sampler, pruner", f"{spec.sampler}, {spec.pruner}"),
        ("trials", number + (f", each with seeds {', '.join(map(str, spec.seeds))}" if seeds > 1 else "")),
        ("kinds of points", f"{len(kinds)}, each built and tried for a few steps"),
    ]
    if sources:
        rows.append(
            (
                "trained before",
                f"{len(sources)} {'stage' if len(sources) == 1 else 'stages'}, about {seconds(before)}",
            )
        )
    most = ", less what is pruned" if spec.pruner != "none" else ""
    hours = f", at most {spec.hours:g} h" if spec.hours is not None else ""
    total = before + each * spec.trials / workers
    who = "1 worker" if workers == 1 else f"{workers} workers"
    return [
        *rows,
        ("a trial", f"about {seconds(each)}"),
        ("in all", f"about {seconds(total)} with {who}{most}{hours}"),
        ("disk", f"about {room / 1e6:,.1f} MB of checkpoints"),
    ]


def _described(entry: SearchParameter, on_grid: bool) -> tuple[str, str]:
    """Values of an entry, and what depends on what."""
    when = [f"{name} is {' or '.join(map(_json, values))}" for name, values in entry.when.items()]
    also = [f"{name} = {factor:g} times it" for name, factor in entry.also.items()]
    return _values(entry.value, on_grid), "; ".join([*when, *also])


def _values(value: Number | Choice | Sizes, on_grid: bool) -> str:
    if isinstance(value, Choice):
        return ", ".join(map(_json, value.values))
    if isinstance(value, Sizes):
        return f"depth {_values(value.depth, on_grid)}; width {_values(value.width, on_grid)}, {value.rule}"
    low, high = value.distribution.low, value.distribution.high
    points = f", {len(value.points or ())} points" if on_grid else ""
    return f"{low:g} to {high:g}{' (logarithmic)' if value.distribution.log else ''}{points}"


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
