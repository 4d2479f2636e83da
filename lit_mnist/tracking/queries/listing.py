"""`lit-mnist runs`: the runs of the store, as a table or as JSON."""

import json
import time
from typing import TYPE_CHECKING, Any

from lit_mnist.errors import UsageError
from lit_mnist.terminal import print_table, seconds
from lit_mnist.tracking.folder import has_unsent, is_at_work, run_folders
from lit_mnist.tracking.store import Store, connect, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COLUMNS = ("id", "name", "experiment", "status", "best", "duration")
STYLES = {"FINISHED": "green", "RUNNING": "cyan", "FAILED": "red", "KILLED": "yellow"}


def list_runs(experiment: str | None, sort: str, limit: int, as_json: bool) -> None:
    """Print the runs.

    Args:
        experiment: Only those of this experiment.
        sort: start (newest first), metric (best first), duration, status or name.
        limit: How many at most.
        as_json: Print a JSON list instead of a table.

    Raises:
        UsageError: there is no such experiment.

    """
    if limit < 1:
        raise UsageError(f"--limit {limit} must be at least 1")
    store = find_store()
    rows = runs(connect(store), experiment)
    rows = sorted(rows, key=_order(sort))[:limit]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        _print_table(rows)
    else:
        print(f"no runs in {store.name} yet: `lit-mnist fit --config zhang/cnn` makes one")
    if not as_json and (waiting := _waiting(store)):
        what = "1 run has" if waiting == 1 else f"{waiting} runs have"
        print(f"{what} unsent entries: lit-mnist sync")


def _waiting(store: Store) -> int:
    """How many runs have something to send, and nobody at work who would."""
    return sum(has_unsent(folder) and not is_at_work(folder) for folder in run_folders(store.home))


def runs(client: "MlflowClient", experiment: str | None = None) -> list[dict[str, Any]]:
    """What is to be said of each run, newest first."""
    names = {e.experiment_id: e.name for e in client.search_experiments()}
    if experiment is not None:
        names = {key: name for key, name in names.items() if name == experiment}
        if not names:
            raise UsageError(f"there is no experiment {experiment!r}")
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            list(names), order_by=["attributes.start_time DESC"], max_results=1000, page_token=token
        )
        found += page
        if not (token := page.token):
            return [_row(run, names[run.info.experiment_id]) for run in found]


def _row(run: "Run", experiment: str) -> dict[str, Any]:
    info, monitor = run.info, run.data.tags.get("monitor")
    end = info.end_time if info.end_time and info.status != "RUNNING" else time.time() * 1000
    return {
        "id": info.run_id,
        "name": info.run_name,
        "experiment": experiment,
        "status": info.status,
        "metric": monitor,
        "best": run.data.metrics.get(f"best/{monitor}", run.data.metrics.get(str(monitor))),
        "metrics": dict(sorted(run.data.metrics.items())),
        "start": info.start_time / 1000,
        "duration": (end - info.start_time) / 1000,
    }


def _order(sort: str) -> Any:
    """A sorting key; runs without a metric come last, accuracies sort downwards, losses upwards."""
    if sort == "metric":
        return lambda row: (
            row["best"] is None,
            row["metric"] or "",
            (-1 if (row["metric"] or "").endswith("acc") else 1) * (row["best"] or 0),
        )
    if sort == "duration":
        return lambda row: -row["duration"]
    return lambda row: -row["start"] if sort == "start" else row[sort]


def _print_table(rows: list[dict[str, Any]]) -> None:
    print_table(COLUMNS, [[_cell(row, column) for column in COLUMNS] for row in rows])


def _cell(row: dict[str, Any], column: str) -> str:
    from rich.markup import escape

    if column == "status":
        return f"[{STYLES.get(row['status'], 'default')}]{row['status']}[/]"
    if column == "best":
        return "" if row["best"] is None else f"{row['metric']} {row['best']:.4f}"
    return seconds(row["duration"]) if column == "duration" else escape(str(row[column]))
