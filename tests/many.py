"""Many runs and experiments, written directly to a store's database: MLflow takes about 10 ms for each."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def copy_runs(path: Path, source: str, count: int, change: Callable[[int, str, Row], bool]) -> list[str]:
    """Copy a run `count` times; returns the ids of the copies.

    Args:
        path: The SQLite file.
        source: The run's id.
        count: How many copies.
        change: Called with the copy's number, the table and the row: changes the row, or leaves it out (False).

    """
    ids = [f"{number:08x}{'c' * 24}" for number in range(count)]
    with closing(sqlite3.connect(path)) as database, database:
        database.row_factory = sqlite3.Row
        for table in ("runs", "tags", "params", "latest_metrics"):
            for row in database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (source,)).fetchall():
                copies = [{**row, "run_uuid": run_id} for run_id in ids]
                _insert(database, table, [copy for i, copy in enumerate(copies) if change(i, table, copy)])
    return ids


def add_experiments(path: Path, count: int) -> None:
    """Add `count` empty experiments, all newer than the existing ones."""
    with closing(sqlite3.connect(path)) as database, database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM experiments WHERE experiment_id = 0").fetchone())
        created = row["creation_time"]
        copies = [
            {**row, "experiment_id": n, "name": f"experiment {n}", "creation_time": created + n,
             "last_update_time": created + n}
            for n in range(1000, 1000 + count)
        ]  # fmt: skip
        _insert(database, "experiments", copies)


def _insert(database: sqlite3.Connection, table: str, rows: list[Row]) -> None:
    if rows:
        columns, placeholders = ", ".join(rows[0]), ", ".join(f":{name}" for name in rows[0])
        database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({placeholders})", rows)
