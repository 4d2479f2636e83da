"""`lit-mnist compare`: runs side by side, in the terminal and as an HTML page."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rich.markup import escape

from lit_mnist.errors import UsageError
from lit_mnist.terminal import print_table, width
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.queries.comparison import Comparison, Line, side_by_side
from lit_mnist.tracking.queries.grouping import Group, direction, group_runs
from lit_mnist.tracking.queries.reader import GOAL, find_runs, open_reader, study_runs
from lit_mnist.tracking.store import find_store

AS_COLUMNS = 4
"""How many groups of runs stand side by side; more stand below one another."""
GAP = 1
"""Between two columns."""


def compare(names: Sequence[str], study: str | None, html: Path | None) -> None:
    """Print how runs differ, and write it as a page.

    Args:
        names: The runs' ids or beginnings of them, in the order wanted.
        study: Instead of them all runs of a study's trials, the best first.
        html: Where the page goes; None for none.

    Raises:
        UserError: there is no such run or study, or the page cannot be written.

    """
    store = find_store()
    reader = open_reader(store)
    runs = find_runs(store, reader, names) if study is None else study_runs(store, reader, study)
    if len(runs) < 2:
        raise UsageError(f"there is only run {runs[0].id}: comparing takes two")
    groups = group_runs(runs, reader)
    if study is not None:
        groups.sort(key=_goodness)
    found = side_by_side(groups)
    _print(found)
    if html is not None:
        replace_text(html, page(found, f"study {study}" if study else f"{len(runs)} runs"))
        print(html)


def page(found: Comparison, title: str) -> str:
    """The comparison as an HTML page that needs no other file."""
    from jinja2 import Environment, StrictUndefined

    template = (resources.files("lit_mnist.tracking.queries") / "compare.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(found=found, title=title)


def _goodness(group: Group) -> tuple[bool, float]:
    """Smaller for a better one; those without a value come last."""
    tags = {name: value for run in group.runs for name, value in run.tags.items()}
    way, _, metric = tags.get(GOAL, "").partition(" ")
    if way:
        sign, summary = 1 if way == "minimize" else -1, group.summary(metric)
    else:
        monitor = tags.get("monitor", "")
        sign, summary = -(direction(monitor) or 1), group.summary(f"best/{monitor}") or group.summary(monitor)
    if summary is None or summary.mean != summary.mean:
        return True, 0.0
    return False, sign * summary.mean


def _print(found: Comparison) -> None:
    if not found.params and not found.metrics:
        print("no difference in parameters or metrics")
    elif len(found.labels) <= AS_COLUMNS:
        _print_columns("", found.labels, [*found.params, *found.metrics])
    else:
        # Whatever is left out for want of room, it is not the main metric.
        _print_rows("run", found.labels, [*found.metrics[:1], *found.params, *found.metrics[1:]])
    if any(any(line.marked) for line in found.metrics):
        print("* the best")
    if found.differences:
        print()
        title, others = f"minus {found.labels[0]}", found.labels[1:]
        show = _print_columns if len(others) <= AS_COLUMNS else _print_rows
        show(title, others, found.differences)
        print("± half the 95 % interval of the difference, seed by seed; * it leaves out 0")


def _print_columns(title: str, labels: Sequence[str], lines: Sequence[Line]) -> None:
    """Print a row for each line."""
    rows = [[escape(line.name), *(_cell(line, i) for i in range(len(labels)))] for line in lines]
    print_table([title, *labels], rows)


def _print_rows(title: str, labels: Sequence[str], lines: Sequence[Line]) -> None:
    """Print a row for each label, with as many of the lines as the width takes."""
    room = width() - max(len(text) for text in (title, *labels))
    fit = 0
    for line in lines:
        room -= max(len(line.name), 1 + max(map(len, line.cells))) + GAP
        fit += room >= 0
    shown = lines[: max(fit, 1)]
    rows = [[label, *(_cell(line, i) for line in shown)] for i, label in enumerate(labels)]
    print_table([title, *(line.name for line in shown)], rows)
    if len(shown) < len(lines):
        names = ", ".join(line.name for line in lines[len(shown) :])
        print(f"too wide for {names}: --html FILE shows all")


def _cell(line: Line, i: int) -> str:
    text = escape(line.cells[i])
    return f"[bold green]{text}*[/]" if line.marked[i] else text
