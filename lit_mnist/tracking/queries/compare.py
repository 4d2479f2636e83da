"""`lit-mnist compare`: runs side by side, in the terminal and as an HTML page.

Runs that differ only in their seed form one group with mean and confidence interval. Only differences between the
groups are shown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape

from lit_mnist.errors import UsageError, nearest
from lit_mnist.terminal import print_table, width
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.journal.system_metrics import PREFIX
from lit_mnist.tracking.pages import has_own_ui, run_page, show_page
from lit_mnist.tracking.queries.grouping import (
    DATA_SEED,
    IRRELEVANT_PARAMS,
    RUN_SEED,
    Group,
    best,
    group_runs,
    seed_of,
)
from lit_mnist.tracking.queries.lookup import resolve_run_id
from lit_mnist.tracking.queries.metrics import higher_is_better, sort_value
from lit_mnist.tracking.queries.reader import STUDY, Reader, RunData, open_reader
from lit_mnist.tracking.queries.statistics import Summary, paired, show_mean
from lit_mnist.tracking.store import Store, find_store

if TYPE_CHECKING:
    from markupsafe import Markup

MISSING = "–"
SHOWN_TAGS = {"sweep.state": "state", "mlflow.source.git.commit": "code", "dataset.digest": "images"}
"""Tags that are shown if they differ, and their displayed names."""
METRIC_ORDER = ("best/", "test/", "val/", "train/")
"""Prefixes of metrics, in the order in which they are shown; all others follow."""
MOST_COLUMNS = 4
"""Maximum number of groups that the terminal shows as columns; more groups are shown as rows."""
LONGEST = 40
"""Maximum length of a parameter in the terminal; the page shows all of it."""


Mark = Literal["", "best", "better", "worse", "differs"]
SIGNS: Mapping[Mark, tuple[str, str]] = {
    "best": ("*", "bold green"),
    "better": ("*", "bold green"),
    "worse": ("!", "bold red"),
    "differs": ("~", "bold"),
}
"""Sign and style of a marked value in the terminal."""


@dataclass(frozen=True)
class Line:
    """A parameter or metric with one cell for each group."""

    name: str
    cells: Sequence[str]
    """Short texts, for the terminal."""
    full: Sequence[str]
    """Complete texts, for the page."""
    numbers: Sequence[float | None]
    """The values to sort by; None for a text."""
    marks: Sequence[Mark]
    """Marks the best value, or whether a difference is better or worse if its confidence interval excludes 0."""


@dataclass(frozen=True)
class Comparison:
    """Groups of runs side by side: the lines that differ."""

    groups: Sequence[Group]
    params: Sequence[Line]
    metrics: Sequence[Line]
    differences: Sequence[Line]
    """Each later group minus the first group, over the seeds that both have."""

    @property
    def labels(self) -> list[str]:
        """The groups' names."""
        return [group.label for group in self.groups]


def compare(names: Sequence[str], study: str | None, html: Path | None) -> None:
    """Print how runs differ, and write it as a page.

    Args:
        names: Ids of the runs, beginnings of ids, or `last`, in the displayed order.
        study: Compare all runs of this study's trials instead, the best first.
        html: The file of the page; None to write no page.

    Raises:
        UserError: there is no such run or study, only one run, or the page cannot be written.

    """
    store = find_store()
    reader = open_reader(store)
    if study is None:
        # Without duplicates, if a run is named twice.
        runs = reader.runs(list(dict.fromkeys(resolve_run_id(store, reader, name) for name in names)))
    else:
        runs = study_runs(store, reader, study)
    if len(runs) < 2:
        raise UsageError(f"there is only run {runs[0].id}: comparing takes two")
    groups = group_runs(runs, reader)
    if study is not None:
        groups.sort(key=_rank)
    found = compare_groups(groups)
    _print(found)
    if html is not None:
        replace_text(html, page(found, f"study {study}" if study else f"{len(runs)} runs", store))
        print(html)
    if study is not None and (own := [run for run in reader.study_runs() if run.tags[STUDY] == study]):
        print(show_page(store, own[0].experiment_id, own[0].id))


def study_runs(store: Store, reader: Reader, study: str) -> list[RunData]:
    """Return the runs of a study's trials, oldest first.

    Raises:
        UsageError: no run belongs to such a study.

    """
    if found := reader.trial_runs(study):
        return found
    studies = reader.studies()
    hint = nearest(study, studies, listed=bool(studies)) or "; `lit-mnist sweep SPEC.yaml` makes one"
    raise UsageError(f"no run of a study {study!r} in {store.name}{hint}")


def _rank(group: Group) -> tuple[bool, float]:
    """Return a sorting key for a study's groups: the best first, those without a value last."""
    _, _, metric = group.goal.partition(" ")
    if not metric:
        monitor = group.runs[0].monitor or ""
        metric = monitor if group.summary(f"best/{monitor}") is None else f"best/{monitor}"
    summary = group.summary(metric)
    return (True, 0.0) if summary is None else (False, sort_value(metric, summary.mean, group.goal))


def compare_groups(groups: Sequence[Group]) -> Comparison:
    """Return the differences between the groups; for a single group, between its runs and their mean."""
    # If all runs differ only in their seed, the runs themselves are the columns.
    if len(groups) == 1 and len(groups[0].runs) > 1:
        runs = groups[0].runs
        groups = [*(Group(run.id[:8], [run]) for run in runs), Group("mean", runs)]

    # Order of the metrics: the study's objectives, then METRIC_ORDER, then the others by name.
    objectives = groups[0].objectives

    def rank(metric: str) -> tuple[int, str]:
        if metric in objectives:
            return objectives.index(metric) - len(objectives), metric
        prefix = next((i for i, prefix in enumerate(METRIC_ORDER) if metric.startswith(prefix)), len(METRIC_ORDER))
        return prefix, metric

    every = [run for group in groups for run in group.runs]
    params = {name for run in every for name in run.params}
    # Without system metrics, and without the learning rate, which is logged as a parameter and as a metric.
    names = {name for run in every for name in run.metrics if not name.startswith(PREFIX)} - params
    metrics = []
    for name in sorted(names, key=rank):
        summaries = [group.summary(name) for group in groups]
        top = best(groups, name)
        marks: list[Mark] = ["best" if s is not None and s.mean == top else "" for s in summaries]
        line = _number_line(name, summaries, marks)
        # By the displayed text, so that differences in digits that are not shown do not count.
        if len(set(line.cells)) > 1:
            metrics.append(line)
    return Comparison(groups, _param_lines(groups), metrics, _difference_lines(groups, [m.name for m in metrics]))


def _param_lines(groups: Sequence[Group]) -> list[Line]:
    """Return seeds, status, tags and parameters, as far as they differ."""
    # Full texts first; at the end, rows that are equal in all groups are left out, and others are shortened.
    rows: dict[str, list[str]] = {
        "seeds": [" ".join(map(seed_of, group.runs)) for group in groups],
        "status": ["/".join(sorted({run.status for run in group.runs})) for group in groups],
    }
    for tag, name in SHOWN_TAGS.items():
        rows[name] = [
            # Twelve characters distinguish commits and digests; complete ones would fill the table.
            "/".join(sorted({run.tags.get(tag, MISSING)[:12] for run in group.runs}))
            for group in groups
        ]
    runs = [run for group in groups for run in group.runs]
    # Seeds are shown in a separate row.
    hidden = {RUN_SEED, *IRRELEVANT_PARAMS}
    if all(run.params.get(DATA_SEED) == run.params.get(RUN_SEED) for run in runs):
        hidden.add(DATA_SEED)
    # In the order of the configuration.
    for name in dict.fromkeys(name for run in runs for name in run.params):
        if name not in hidden:
            rows[name] = [group.runs[0].params.get(name, MISSING) for group in groups]
    lines = []
    for name, full in rows.items():
        if len(set(full)) > 1:
            numbers = [_number(text) for text in full]
            lines.append(Line(name, [_short(text) for text in full], full, numbers, [""] * len(full)))
    return lines


def _difference_lines(groups: Sequence[Group], metrics: Sequence[str]) -> list[Line]:
    """Return, for each metric, the difference between each later group and the first group."""
    lines = []
    for name in metrics:
        # Paired by seed, so that effects of the seed cancel out. None with fewer than two common seeds.
        first = groups[0].by_seed(name)
        found = [paired(group.by_seed(name), first) for group in groups[1:]]
        if name.startswith(METRIC_ORDER) and any(summary is not None and any(summary.values) for summary in found):
            # None for metrics without a better direction, such as a learning rate.
            upwards = higher_is_better(name, groups[0].goal_of(name))
            lines.append(_number_line(name, found, [_judge(summary, upwards) for summary in found], "+"))
    return lines


def _judge(difference: Summary | None, upwards: bool | None) -> Mark:
    """Return whether a difference is significantly better or worse; empty if its interval includes 0."""
    if difference is None or difference.interval is None or abs(difference.mean) <= difference.interval:
        return ""
    if upwards is None:
        return "differs"
    return "better" if (difference.mean > 0) == upwards else "worse"


def _number_line(name: str, summaries: Sequence[Summary | None], marks: Sequence[Mark], sign: str = "") -> Line:
    """Return a line of means with intervals; with `sign` "+", positive numbers have a sign too."""
    cells = [MISSING if s is None else show_mean(s.mean, s.interval, sign) for s in summaries]
    if all(s is None or (s.interval is None and s.mean.is_integer()) for s in summaries):
        # Counts, such as epochs: without the decimals that other small numbers have.
        cells = [MISSING if s is None else f"{s.mean:{sign},.0f}" for s in summaries]
    return Line(name, cells, cells, [None if s is None else s.mean for s in summaries], marks)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _short(text: str) -> str:
    """Return a parameter's text shortened for a table: four digits of a number, the end of a path."""
    # 0.00031622776601683794 as 0.0003162.
    value = _number(text)
    if value is not None and len(text) > 8:
        return f"{value:.4g}"
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def page(found: Comparison, title: str, store: Store) -> str:
    """Return the comparison as a self-contained HTML page; runs are linked to MLflow's UI."""
    from jinja2 import Environment, StrictUndefined

    def link(run: RunData) -> str:
        return run_page(store, run.experiment_id, run.id)

    # Without external scripts or styles, so that the file can be sent by mail.
    template = (resources.files("lit_mnist.tracking.queries") / "compare.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["breakable"] = _breakable
    is_local = not has_own_ui(store)
    return environment.from_string(template).render(found=found, title=title, link=link, is_local=is_local)


def _breakable(name: str) -> "Markup":
    """Return a name as HTML in which line breaks are possible after slashes and underscores only."""
    from markupsafe import Markup

    return Markup(re.sub("[/_]", r"\g<0><wbr>", str(Markup.escape(name))))


def _print(found: Comparison) -> None:
    # Three cases: no differences, groups as columns, or groups as rows.
    if not found.params and not found.metrics:
        print("no difference in parameters or metrics")
    elif len(found.labels) <= MOST_COLUMNS:
        _print_columns("", found.labels, [*found.params, *found.metrics])
    else:
        # The objectives, or the main metric, come first, since lines that do not fit are left out at the end.
        count = max(1, sum(line.name in found.groups[0].objectives for line in found.metrics))
        lines = [*found.metrics[:count], *found.params, *found.metrics[count:]]
        _print_rows("run", found.labels, lines, count)
    if any(any(line.marks) for line in found.metrics):
        print("* the best of its metric")
    if found.differences:
        print()
        title, others = f"minus {found.labels[0]}", found.labels[1:]
        show = _print_columns if len(others) <= MOST_COLUMNS else _print_rows
        show(title, others, found.differences)
        print("± half the 95 % confidence interval of the difference, paired by seed")
        print("surely * better, ! worse, ~ different")


def _print_columns(title: str, labels: Sequence[str], lines: Sequence[Line]) -> None:
    """Print a table with a row for each line."""
    rows = [[escape(line.name), *(_cell(line, i) for i in range(len(labels)))] for line in lines]
    print_table([title, *map(escape, labels)], rows)


def _print_rows(title: str, labels: Sequence[str], lines: Sequence[Line], least: int = 1) -> None:
    """Print a table with a row for each label; its columns are as many lines as fit, at least `least`."""
    # The first column with the labels is always complete.
    room = width() - max(len(text) for text in (title, *labels))
    fit = 0
    for line in lines:
        room -= max(len(line.name), 1 + max(map(len, line.cells))) + 1  # with a mark, and a space between columns
        fit += room >= 0
    shown = lines[: max(fit, least)]
    rows = [[escape(label), *(_cell(line, i) for line in shown)] for i, label in enumerate(labels)]
    print_table([title, *(escape(line.name) for line in shown)], rows)
    if len(shown) < len(lines):
        names = ", ".join(line.name for line in lines[len(shown) :])
        print(f"no room for the columns {names}: `--html FILE` shows all")


def _cell(line: Line, i: int) -> str:
    text, mark = escape(line.cells[i]), line.marks[i]
    if not mark:
        return text
    sign, style = SIGNS[mark]
    return f"[{style}]{text}{sign}[/]"
