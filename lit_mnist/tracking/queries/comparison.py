"""What differs between runs, ready to be shown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_mnist.tracking.journal.system_metrics import PREFIX
from lit_mnist.tracking.queries.grouping import DATA_SEED, NO_MATTER, RUN_SEED, Group, best, differences
from lit_mnist.tracking.queries.reader import RunData
from lit_mnist.tracking.queries.statistics import Summary

NONE = "–"
TOLD = {"sweep.state": "state", "mlflow.source.git.commit": "code", "dataset.digest": "images"}
"""Tags that are shown where they differ, by their short names."""
FIRST = ("best/", "test/", "val/", "train/")
"""Kinds of metrics, the most telling first."""


@dataclass(frozen=True)
class Line:
    """A parameter or metric, with a cell for each group."""

    name: str
    cells: Sequence[str]
    numbers: Sequence[float | None]
    """What to sort by; None for what is no number."""
    marked: Sequence[bool]
    """The best, or in a difference what is surely one."""


@dataclass(frozen=True)
class Comparison:
    """Groups side by side: only what differs."""

    labels: Sequence[str]
    runs: Sequence[Sequence[RunData]]
    params: Sequence[Line]
    metrics: Sequence[Line]
    differences: Sequence[Line]
    """Of the groups after the first from the first, over the seeds that they share."""


def side_by_side(groups: Sequence[Group]) -> Comparison:
    """What differs between the groups; the runs of a single group beside their mean."""
    shown = list(groups)
    if len(groups) == 1 and len(groups[0].runs) > 1:
        shown = [*(Group(run.id[:8], [run]) for run in groups[0].runs), Group("mean", groups[0].runs)]
    names = sorted({name for group in shown for run in group.runs for name in run.metrics}, key=_rank)
    params = {name for group in shown for run in group.runs for name in run.params}  # the learning rate is both
    metrics = [_metric(shown, name) for name in names if not name.startswith(PREFIX) and name not in params]
    return Comparison(
        [group.label for group in shown],
        [group.runs for group in shown],
        [line for line in _params(shown) if len(set(line.cells)) > 1],
        [line for line in metrics if len(set(line.cells)) > 1],
        _differences(shown, [line.name for line in metrics if line.name.startswith(FIRST)]),
    )


def _params(groups: Sequence[Group]) -> Iterable[Line]:
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.params)
    yield _line("seeds", [" ".join(group.seeds) for group in groups])
    yield _line("status", ["/".join(sorted({run.status for run in group.runs})) for group in groups])
    for tag, name in TOLD.items():
        yield _line(name, ["/".join(sorted({run.tags.get(tag, NONE)[:12] for run in g.runs})) for g in groups])
    runs = [run for group in groups for run in group.runs]
    own = () if any(run.params.get(DATA_SEED) != run.params.get(RUN_SEED) for run in runs) else (DATA_SEED,)
    for name in names:
        if name not in (RUN_SEED, *NO_MATTER, *own):
            yield _line(name, [NONE if (text := group.param(name)) is None else text for group in groups])


def _line(name: str, cells: Sequence[str]) -> Line:
    return Line(name, [_short(cell) for cell in cells], [_float(cell) for cell in cells], [False] * len(cells))


def _metric(groups: Sequence[Group], name: str) -> Line:
    found = [group.summary(name) for group in groups]
    top = best(groups, name)
    means = [None if summary is None else summary.mean for summary in found]
    return Line(name, [_cell(summary) for summary in found], means, [top is not None and m == top for m in means])


def _differences(groups: Sequence[Group], names: Iterable[str]) -> list[Line]:
    lines = []
    for name in names:
        found = differences(groups, name)
        if any(summary is not None and any(summary.values) for summary in found):
            sure = [s is not None and s.interval is not None and abs(s.mean) > s.interval for s in found]
            means = [None if summary is None else summary.mean for summary in found]
            lines.append(Line(name, [_cell(summary, "+") for summary in found], means, sure))
    return lines


def _cell(summary: Summary | None, sign: str = "") -> str:
    if summary is None:
        return NONE
    mean = format(summary.mean, f"{sign}#.4g").rstrip(".")
    if summary.interval is None or not 1e-9 * abs(summary.mean) < summary.interval < math.inf:
        return mean
    # Both to two figures of the interval: what lies below says nothing.
    digits = max(0, 1 - math.floor(math.log10(summary.interval)))
    return f"{summary.mean:{sign}.{digits}f} ± {summary.interval:.{digits}f}"


def _short(text: str) -> str:
    """A parameter as it fits a table: figures that matter, and of a path the end."""
    value = _float(text)
    if value is not None and len(text) > 8:
        return f"{value:.4g}"
    return text if len(text) <= 40 else f"…{text[-39:]}"


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _rank(metric: str) -> tuple[int, str]:
    """Where a metric stands among others."""
    kind = next((i for i, prefix in enumerate(FIRST) if metric.startswith(prefix)), len(FIRST))
    return kind, metric
