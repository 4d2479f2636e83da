"""Read many runs at once: their parameters, tags and last metric values, for tables and comparisons.

A SQLite store is read directly, because importing MLflow alone takes longer than most queries. Any other store (a
tracking server, PostgreSQL) is read through MLflow's client, which sorts and limits on the server: no more runs
are transferred than returned, except if MLflow cannot express the order.
"""

import heapq
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from lit_mnist.added_options import ADDED_OPTIONS
from lit_mnist.tracking.folder import OFFLINE_ID
from lit_mnist.tracking.queries.metrics import sort_value
from lit_mnist.tracking.queries.search import search_experiments, search_runs
from lit_mnist.tracking.store import SQLITE, Store, StoreError, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

STUDY, TRIAL, SEED = "sweep.study", "sweep.trial", "sweep.seed"
"""Tags of the runs of a sweep's trials."""
STUDY_RUN = "sweep.run"
"""Tag with the id of the study's run. Names do not identify a study: one in another storage may have the same."""
ROLE = "sweep.role"
"""The tag that is `study` for a study's own run, and `trial` for the group run of a trial's seeds."""
RESULT = "sweep.result"
"""The tag of a study's run with its best value, in a few words."""
GOAL = "sweep.goal"
"""The tag that says what a study optimizes, such as `minimize val/loss`."""
GOALS = "sweep.goals"
"""The same of a study with several objectives, separated by commas."""
MONITOR = "monitor"
"""The tag with the metric by which a run's best checkpoint is chosen."""
ID_LENGTH = 32
"""Characters of a complete run id."""
MOST_MONITORS = 30
"""Different values of the tag MONITOR that a search through MLflow looks for."""

Sort = Literal["start", "metric", "duration", "status", "name"]
SERVER_ORDER: dict[Sort, tuple[str, ...]] = {
    "start": ("attributes.start_time DESC",),
    "status": ("attributes.status ASC", "attributes.start_time DESC"),
    "name": ("attributes.run_name ASC", "attributes.start_time DESC"),
}
"""MLflow's words for the orders that it can express."""


ADDED_PARAMS = {name: str(value) for options in ADDED_OPTIONS.values() for name, value in options.items()}
"""`ADDED_OPTIONS` as parameters in MLflow, which are texts and have no group."""


@dataclass(frozen=True)
class RunData:
    """A run's data in the store, with only the last value of each metric."""

    id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    experiment: str = ""
    experiment_id: str = ""
    start: float = 0.0
    """Seconds since 1970, as is `end`."""
    end: float | None = None

    def __post_init__(self) -> None:
        """Complete a fit's parameters with the options that its version did not have yet."""
        if "data" in self.params:  # a run of `fit`
            object.__setattr__(self, "params", {**ADDED_PARAMS, **self.params})

    @property
    def monitor(self) -> str | None:
        """The metric by which the best checkpoint is chosen."""
        return self.tags.get(MONITOR)

    @property
    def best(self) -> float | None:
        """The monitored metric at the best checkpoint; before the fit has ended, its last value."""
        return self.metrics.get(f"best/{self.monitor}", self.metrics.get(str(self.monitor)))

    @property
    def duration(self) -> float:
        """Seconds from start to end, or until now while the run is RUNNING."""
        return (self.end if self.end and self.status != "RUNNING" else time.time()) - self.start


class DatabaseReader:
    """Reads the tables of a SQLite store; `mlflow_private.COLUMNS` lists the columns and the versions tried."""

    def __init__(self, path: str) -> None:
        self.path = path

    def has_tables(self) -> bool:
        """True if MLflow has created the tables that are read here."""
        return bool(self._select("SELECT 1 FROM sqlite_master WHERE name = 'latest_metrics'"))

    def experiments(self) -> Mapping[str, str]:
        """Return id and name of every experiment."""
        rows = self._select("SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active'")
        return {str(key): name for key, name in rows}

    def list_runs(self, sort: Sort, limit: int | None = None, experiment: str | None = None) -> list[RunData]:
        """Return the first `limit` runs in the given order, of all experiments or of the one of that name."""
        # For all runs, only the data for sorting is read (0.1 s for 10,000 runs); the rest for `limit` runs.
        rows = self._select(
            "SELECT r.run_uuid, r.name, r.status, r.start_time, r.end_time, monitor.value,"
            # MLflow stores NaN as 0 with `is_nan` set.
            " CASE best.is_nan WHEN 1 THEN 'nan' ELSE best.value END,"
            " CASE last.is_nan WHEN 1 THEN 'nan' ELSE last.value END"
            " FROM runs AS r JOIN experiments AS e ON e.experiment_id = r.experiment_id"
            f" LEFT JOIN tags AS monitor ON monitor.run_uuid = r.run_uuid AND monitor.key = '{MONITOR}'"
            " LEFT JOIN latest_metrics AS best"
            " ON best.run_uuid = r.run_uuid AND best.key = 'best/' || monitor.value"
            " LEFT JOIN latest_metrics AS last ON last.run_uuid = r.run_uuid AND last.key = monitor.value"
            " WHERE r.lifecycle_stage = 'active' AND e.name = coalesce(?, e.name)"
            " ORDER BY r.start_time DESC, r.run_uuid",
            experiment,
        )
        found = []
        for run_id, name, status, start, end, monitor, best, last in rows:
            metrics = {f"best/{monitor}": best, str(monitor): last}
            metrics = {metric: float(value) for metric, value in metrics.items() if value is not None}
            tags = {} if monitor is None else {MONITOR: monitor}
            found.append(RunData(run_id, name or "", status, {}, metrics, tags, "", "", *_seconds(start, end)))
        return self.runs([run.id for run in _first(found, sort, limit)])

    def runs(self, ids: Sequence[str]) -> list[RunData]:
        """Return the runs with these full ids, in this order; unknown ids are left out."""
        # Four queries for any number of runs: the list of ids is passed as one JSON value, which has no length
        # limit.
        wanted = json.dumps(list(ids))
        among = "run_uuid IN (SELECT value FROM json_each(?))"
        params: dict[str, dict[str, str]] = {run_id: {} for run_id in ids}
        tags: dict[str, dict[str, str]] = {run_id: {} for run_id in ids}
        metrics: dict[str, dict[str, float]] = {run_id: {} for run_id in ids}
        for run_id, key, value in self._select(f"SELECT run_uuid, key, value FROM params WHERE {among}", wanted):
            params[run_id][key] = value
        for run_id, key, value in self._select(f"SELECT run_uuid, key, value FROM tags WHERE {among}", wanted):
            tags[run_id][key] = value
        number = "CASE is_nan WHEN 1 THEN 'nan' ELSE value END"
        for run_id, key, value in self._select(
            f"SELECT run_uuid, key, {number} FROM latest_metrics WHERE {among}", wanted
        ):
            metrics[run_id][key] = float(value)
        rows = self._select(
            "SELECT run_uuid, runs.name, status, experiments.name, experiment_id, start_time, end_time"
            f" FROM runs JOIN experiments USING (experiment_id) WHERE {among} AND runs.lifecycle_stage = 'active'",
            wanted,
        )
        found = {}
        for run_id, name, status, experiment, key, start, end in rows:
            content = params[run_id], metrics[run_id], tags[run_id]
            found[run_id] = RunData(
                run_id, name or "", status, *content, experiment, str(key), *_seconds(start, end)
            )
        # SQL does not keep the order of the ids.
        return [found[run_id] for run_id in ids if run_id in found]

    def ids_beginning(self, text: str, limit: int = 2) -> list[str]:
        """Return at most `limit` ids of runs whose id, or else offline id, begins with `text`."""
        # GLOB instead of LIKE, which ignores case and therefore cannot use the index of the ids.
        active = "lifecycle_stage = 'active' LIMIT ?"
        found = self._select(f"SELECT run_uuid FROM runs WHERE run_uuid GLOB ? AND {active}", f"{text}*", limit)
        offline = (
            "SELECT run_uuid FROM runs JOIN tags USING (run_uuid)"
            f" WHERE key = '{OFFLINE_ID}' AND value GLOB ? AND {active}"
        )
        return [run_id for (run_id,) in found or self._select(offline, f"{text}*", limit)]

    def studies(self) -> list[str]:
        """Return the names of the studies."""
        # The join with `runs` excludes the tags of deleted runs.
        sql = (
            "SELECT DISTINCT value FROM tags JOIN runs USING (run_uuid)"
            " WHERE key = ? AND lifecycle_stage = 'active' ORDER BY value"
        )
        return [name for (name,) in self._select(sql, STUDY)]

    def study_runs(self, limit: int | None = None) -> list[RunData]:
        """Return the own runs of the newest studies, newest first."""
        sql = (
            "SELECT run_uuid FROM tags JOIN runs USING (run_uuid) WHERE key = ? AND value = 'study'"
            " AND lifecycle_stage = 'active' ORDER BY start_time DESC, run_uuid LIMIT ?"
        )
        return self.runs([run_id for (run_id,) in self._select(sql, ROLE, -1 if limit is None else limit)])

    def trial_runs(self, study: str) -> list[RunData]:
        """Return the runs of a study's trials, oldest first."""
        sql = (
            "SELECT run_uuid FROM tags AS study JOIN tags AS seed USING (run_uuid) JOIN runs USING (run_uuid)"
            " WHERE study.key = ? AND study.value = ? AND seed.key = ? AND lifecycle_stage = 'active'"
            " ORDER BY start_time, run_uuid"
        )
        return self.runs([run_id for (run_id,) in self._select(sql, STUDY, study, SEED)])

    def _select(self, sql: str, *values: str | int | None) -> list[tuple[Any, ...]]:
        # Read-only, so that no query can change or create a database. The timeout is for writers, which lock the
        # file usually for milliseconds, and for seconds during MLflow's migrations.
        uri = f"file:{quote(self.path)}?mode=ro"
        try:
            # A new connection for each query, so that threads share nothing, and a moved file is noticed.
            with closing(sqlite3.connect(uri, uri=True, timeout=30)) as connection:
                return connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the tracking store {SQLITE}{self.path}: {error}") from None


class ClientReader:
    """Reads through MLflow's client, from a tracking server or another kind of database."""

    def __init__(self, client: "MlflowClient") -> None:
        self.client = client
        self._experiments: dict[str, str] | None = None

    def experiments(self) -> Mapping[str, str]:
        """Return id and name of every experiment; requested only once."""
        if self._experiments is None:
            self._experiments = {found.experiment_id: found.name for found in search_experiments(self.client)}
        return self._experiments

    def list_runs(self, sort: Sort, limit: int | None = None, experiment: str | None = None) -> list[RunData]:
        """Return the first `limit` runs in the given order, of all experiments or of the one of that name."""
        there = [key for key, name in self.experiments().items() if experiment in (None, name)]
        if sort in SERVER_ORDER:
            return list(self._search("", SERVER_ORDER[sort], limit, there))
        if sort == "metric" and limit is not None:
            return self._list_by_metric(limit, there)
        # MLflow cannot sort by a difference of two attributes, so all runs are read and `limit` of them are kept.
        return _first(self._search("", SERVER_ORDER["start"], None, there), sort, limit)

    def _list_by_metric(self, limit: int, experiments: Sequence[str]) -> list[RunData]:
        """Return the best `limit` runs; requests at most 2 * limit runs for each monitored metric."""
        # The order depends on the metric named in each run's tag, which MLflow cannot express in one query.
        found: dict[str, RunData] = {}
        for monitor in self._monitors(experiments):
            same = f"tags.{MONITOR} = {_quoted(monitor)}"
            way = "DESC" if sort_value(monitor, 1.0) < 0 else "ASC"
            # The second query is for running runs, which have no `best/…` yet and are sorted by their last value.
            for metric in (f"best/{monitor}", monitor):
                # Runs without the metric come last in either direction.
                order = (f"metrics.`{metric}` {way}", *SERVER_ORDER["start"])
                found |= {run.id: run for run in self._search(same, order, limit, experiments)}
            if sum(run.best is not None for run in found.values()) >= limit:
                break
        else:
            # Fewer than `limit` runs have a value, so the newest 2 * limit runs include enough runs without one.
            newest = self._search("", SERVER_ORDER["start"], 2 * limit, experiments)
            found |= {run.id: run for run in newest}
        return _first(sorted(found.values(), key=lambda run: (-run.start, run.id)), "metric", limit)

    def _monitors(self, experiments: Sequence[str]) -> list[str]:
        """Return the different values of the tag MONITOR: each search excludes the values found before."""
        found: list[str] = []
        while len(found) < MOST_MONITORS:  # each condition joins a table, and SQLite joins at most 64 tables
            query = " AND ".join(f"tags.{MONITOR} != {_quoted(monitor)}" for monitor in found)
            query = query or f"tags.{MONITOR} LIKE '%'"
            run = next(self._search(query, SERVER_ORDER["start"], 1, experiments), None)
            if run is None:
                break
            found.append(run.tags[MONITOR])
        return sorted(found)

    def runs(self, ids: Sequence[str]) -> list[RunData]:
        """Return the runs with these full ids, in this order; unknown ids are left out."""
        found: dict[str, RunData] = {}
        for start in range(0, len(ids), 100):  # some servers limit the length of a filter
            among = ", ".join(f"'{run_id}'" for run_id in ids[start : start + 100])
            found |= {run.id: run for run in self._search(f"attributes.run_id IN ({among})")}
        return [found[run_id] for run_id in ids if run_id in found]

    def ids_beginning(self, text: str, limit: int = 2) -> list[str]:
        """Return at most `limit` ids of runs whose id, or else offline id, begins with `text`."""
        if len(text) == ID_LENGTH:  # one request is enough, while a search needs the ids of all experiments
            from mlflow.exceptions import MlflowException

            with suppress(MlflowException):  # not found: it may be an offline id
                if self.client.get_run(text).info.lifecycle_stage == "active":
                    return [text]
        for field in ("attributes.run_id", f"tags.{OFFLINE_ID}"):
            if found := [run.id for run in self._search(f"{field} LIKE '{text}%'", limit=limit)]:
                return found
        return []

    def studies(self) -> list[str]:
        """Return the names of the studies."""
        return sorted({run.tags[STUDY] for run in self._search(f"tags.`{STUDY}` LIKE '%'")})

    def study_runs(self, limit: int | None = None) -> list[RunData]:
        """Return the own runs of the newest studies, newest first."""
        return list(self._search(f"tags.`{ROLE}` = 'study'", limit=limit))

    def trial_runs(self, study: str) -> list[RunData]:
        """Return the runs of a study's trials, oldest first."""
        query = f"tags.`{STUDY}` = {_quoted(study)} AND tags.`{SEED}` LIKE '%'"
        return sorted(self._search(query), key=lambda run: (run.start, run.id))

    def _search(
        self,
        query: str,
        order: Sequence[str] = SERVER_ORDER["start"],
        limit: int | None = None,
        experiments: Sequence[str] | None = None,
    ) -> Iterator[RunData]:
        # Runs contain only the id of their experiment.
        names = self.experiments()
        if experiments is None:
            experiments = list(names)
        for run in search_runs(self.client, query, experiments, order, limit):
            info, data = run.info, run.data
            yield RunData(
                info.run_id, info.run_name or "", info.status, data.params, data.metrics, data.tags,
                names[info.experiment_id], info.experiment_id, *_seconds(info.start_time, info.end_time),
            )  # fmt: skip


Reader = DatabaseReader | ClientReader
"""Reads the runs of a store that are not deleted. Both classes have the same methods with the same results."""


def open_reader(store: Store) -> Reader:
    """Return the fastest reader for the store."""
    if store.uri.startswith(SQLITE) and Path(store.uri.removeprefix(SQLITE)).exists():
        database = DatabaseReader(store.uri.removeprefix(SQLITE))
        if database.has_tables():  # otherwise another process may be creating them, and `connect` waits for it
            return database
    return ClientReader(connect(store))


def _first(runs: Iterable[RunData], sort: Sort, limit: int | None) -> list[RunData]:
    """Return the first `limit` of `runs`, which come newest first, in the given order."""
    if sort == "start":
        return list(islice(runs, limit))
    if limit is None:
        return sorted(runs, key=lambda run: _sort_key(run, sort))
    return heapq.nsmallest(limit, runs, key=lambda run: _sort_key(run, sort))  # stable, as `sorted` is


def _sort_key(run: RunData, sort: Sort) -> tuple[Any, ...]:
    if sort == "metric":
        # Sorted by metric, and then by value, the best first; runs without a value come last.
        if run.best is None or run.monitor is None:
            return True, "", 0.0
        return False, run.monitor, sort_value(run.monitor, run.best)
    if sort == "duration":
        return (-run.duration,)
    return (run.status if sort == "status" else run.name,)


def _seconds(start: int, end: int | None) -> tuple[float, float | None]:
    """Convert MLflow's milliseconds."""
    return start / 1000, None if end is None else end / 1000


def _quoted(text: str) -> str:
    """Return `text` as a string literal of MLflow's filter language, which has no escape characters."""
    return f'"{text}"' if "'" in text else f"'{text}'"
