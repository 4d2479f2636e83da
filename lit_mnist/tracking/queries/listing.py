"""`lit-mnist runs`: the runs of the store, as a table or as JSON."""

import json
from typing import Any

from lit_mnist.errors import UsageError, nearest
from lit_mnist.terminal import print_table, seconds
from lit_mnist.tracking.folder import has_unsent, is_at_work, run_folders
from lit_mnist.tracking.queries.reader import Sort, open_reader
from lit_mnist.tracking.store import Store, find_store

COLUMNS = ("id", "name", "experiment", "status", "best", "duration")
SHORT_ID = 8
"""Characters of an id in the table; all commands accept the beginning of an id."""
STYLES = {"FINISHED": "green", "RUNNING": "cyan", "FAILED": "red", "KILLED": "yellow"}


def list_runs(experiment: str | None, sort: Sort, limit: int, as_json: bool) -> None:
    """Print the runs.

    Args:
        experiment: Only the runs of this experiment; None for all.
        sort: start (newest first), metric (best first), duration (longest first), status or name.
        limit: Maximum number of runs, at least 1.
        as_json: Print a JSON list instead of a table.

    Raises:
        UsageError: there is no such experiment.

    """
    from rich.markup import escape

    store = find_store()
    rows = runs(store, experiment, sort, limit)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if rows:
        # Cells are rich's markup, so users' names are escaped.
        cells = [
            [
                row["id"][:SHORT_ID],
                escape(row["name"]),
                escape(row["experiment"]),
                f"[{STYLES.get(row['status'], 'default')}]{row['status']}[/]",
                "" if row["best"] is None else escape(f"{row['metric']} {row['best']:.4f}"),
                seconds(row["duration"]),
            ]
            for row in rows
        ]
        print_table(COLUMNS, cells, whole=("id", "status", "best", "duration"))
    else:
        print(f"no runs in {store.name} yet: `lit-mnist fit --config zhang/cnn` makes one")
    # Runs with unsent entries, except those in use, which send their entries themselves.
    unsent = sum(has_unsent(folder) and not is_at_work(folder) for folder in run_folders(store.home))
    if unsent:
        print(f"{'1 run has' if unsent == 1 else f'{unsent} runs have'} unsent entries: lit-mnist sync")


def runs(
    store: Store, experiment: str | None = None, sort: Sort = "start", limit: int | None = None
) -> list[dict[str, Any]]:
    """Return the output of `lit-mnist runs --json`: a dictionary for each run.

    Raises:
        UsageError: there is no such experiment.

    """
    # Checked here, since an unknown experiment would only give an empty list.
    reader = open_reader(store)
    if experiment is not None and experiment not in (names := reader.experiments().values()):
        raise UsageError(f"there is no experiment {experiment!r}{nearest(experiment, names)}")
    return [
        {
            "id": run.id,
            "name": run.name,
            "experiment": run.experiment,
            "status": run.status,
            "metric": run.monitor,
            "best": run.best,
            "metrics": dict(sorted(run.metrics.items())),
            "start": run.start,
            "duration": run.duration,
        }
        for run in reader.list_runs(sort, limit, experiment)
    ]
