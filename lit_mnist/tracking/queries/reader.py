"""Many runs read at once, and fast: what a table of them needs."""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from lit_mnist.errors import UsageError, nearest
from lit_mnist.tracking.store import SQLITE, Store, StoreError, connect

STUDY, TRIAL, SEED = "sweep.study", "sweep.trial", "sweep.seed"
GOAL = "sweep.goal"
"""The tag that says what a study looks for, such as `minimize val/loss`."""
"""Tags of the runs of a sweep's trials."""
AMONG = "run_uuid IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class RunData:
    """What the store has of a run, each metric's last value only."""

    id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


class Reader(Protocol):
    """Reads runs that are not deleted."""

    def runs(self, ids: Sequence[str]) -> list[RunData]:
        """The runs of these full ids, as far as there are any, in this order."""

    def beginning(self, text: str) -> list[str]:
        """At most two ids that begin with `text`."""

    def studies(self) -> dict[str, list[str]]:
        """The ids of each study's trials' runs, oldest first."""


def open_reader(store: Store) -> Reader:
    """A reader of the store: for a database file one that needs no MLflow, whose import takes seconds."""
    if store.uri.startswith(SQLITE) and Path(store.uri.removeprefix(SQLITE)).exists():
        return _Database(store.uri.removeprefix(SQLITE))
    return _Client(store)


def find_runs(store: Store, reader: Reader, names: Sequence[str]) -> list[RunData]:
    """The runs whose ids begin with `names`, each once, in this order.

    Raises:
        UserError: a name fits no run, or more than one.

    """
    ids = []
    for name in names:
        found = reader.beginning(name) if re.fullmatch("[0-9a-f]+", name) else []
        if len(found) != 1:
            from lit_mnist.tracking.queries.lookup import find_run

            # Runs that were offline have other names, too; and what is wrong with a name is known there.
            found = [find_run(connect(store), store, name).info.run_id]
        ids += found
    return reader.runs(list(dict.fromkeys(ids)))


def study_runs(store: Store, reader: Reader, study: str) -> list[RunData]:
    """The runs of a study's trials, oldest first.

    Raises:
        UsageError: no run belongs to such a study.

    """
    studies = reader.studies()
    if study not in studies:
        hint = nearest(study, studies, listed=bool(studies)) or "; `lit-mnist sweep SPEC.yaml` makes one"
        raise UsageError(f"no run of a study {study!r} in {store.name}{hint}")
    return reader.runs(studies[study])


class _Database:
    """Reads MLflow's tables; their layout is as old as MLflow's search for runs."""

    def __init__(self, path: str) -> None:
        self.path = path

    def runs(self, ids: Sequence[str]) -> list[RunData]:
        """The runs of these ids."""
        wanted = json.dumps(list(ids))
        sql = f"SELECT run_uuid, name, status FROM runs WHERE {AMONG} AND lifecycle_stage = 'active'"
        heads = {run_id: (name, status) for run_id, name, status in self._select(sql, wanted)}
        params, tags = self._fields("params", wanted), self._fields("tags", wanted)
        metrics = self._fields("latest_metrics", wanted, "CASE is_nan WHEN 1 THEN 'nan' ELSE value END")
        return [
            RunData(
                run_id,
                *heads[run_id],
                params.get(run_id, {}),
                {name: float(value) for name, value in metrics.get(run_id, {}).items()},
                tags.get(run_id, {}),
            )
            for run_id in ids
            if run_id in heads
        ]

    def beginning(self, text: str) -> list[str]:
        """At most two ids."""
        sql = "SELECT run_uuid FROM runs WHERE run_uuid GLOB ? AND lifecycle_stage = 'active' LIMIT 2"
        return [run_id for (run_id,) in self._select(sql, f"{text}*")]

    def studies(self) -> dict[str, list[str]]:
        """The ids of each study's runs."""
        found: dict[str, list[str]] = {}
        for study, run_id in self._select(
            "SELECT study.value, run_uuid FROM tags AS study JOIN tags AS seed USING (run_uuid) JOIN runs"
            " USING (run_uuid) WHERE study.key = ? AND seed.key = ? AND lifecycle_stage = 'active'"
            " ORDER BY start_time",
            STUDY,
            SEED,
        ):
            found.setdefault(study, []).append(run_id)
        return found

    def _fields(self, table: str, ids: str, value: str = "value") -> dict[str, dict[str, str]]:
        """What the table has of each run: key to value."""
        found: dict[str, dict[str, str]] = {}
        for run_id, key, content in self._select(f"SELECT run_uuid, key, {value} FROM {table} WHERE {AMONG}", ids):
            found.setdefault(run_id, {})[key] = content
        return found

    def _select(self, sql: str, *values: str) -> Iterator[tuple[Any, ...]]:
        uri = f"file:{quote(self.path)}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=30)) as connection:
                yield from connection.execute(sql, values)
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the tracking store {SQLITE}{self.path}: {error}") from None


class _Client:
    """Reads through MLflow's client: from a server, or another kind of database."""

    def __init__(self, store: Store) -> None:
        self.client = connect(store)
        self.experiments = [e.experiment_id for e in self.client.search_experiments()]

    def runs(self, ids: Sequence[str]) -> list[RunData]:
        """The runs of these ids."""
        found: dict[str, RunData] = {}
        for start in range(0, len(ids), 100):  # a server's address line is not endless
            among = ", ".join(f"'{run_id}'" for run_id in ids[start : start + 100])
            found |= {run.id: run for run in self._search(f"attributes.run_id IN ({among})")}
        return [found[run_id] for run_id in ids if run_id in found]

    def beginning(self, text: str) -> list[str]:
        """At most two ids."""
        found = self.client.search_runs(self.experiments, f"attributes.run_id LIKE '{text}%'", max_results=2)
        return [run.info.run_id for run in found]

    def studies(self) -> dict[str, list[str]]:
        """The ids of each study's runs."""
        found: dict[str, list[str]] = {}
        for run in self._search(f"tags.`{STUDY}` LIKE '%' AND tags.`{SEED}` LIKE '%'"):
            found.setdefault(run.tags[STUDY], []).append(run.id)
        return found

    def _search(self, query: str) -> Iterator[RunData]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                self.experiments, query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            for run in page:
                info, data = run.info, run.data
                yield RunData(info.run_id, info.run_name, info.status, data.params, data.metrics, data.tags)
            if not (token := page.token):
                return
