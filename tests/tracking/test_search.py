"""Searches in stores with many experiments and runs find everything, and transfer no more than needed."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import enter_project
from many import Row, add_experiments, copy_runs
from mlflow import MlflowClient
from mlflow.entities import Metric
from servers import Server

from lit_mnist.tracking.folder import OFFLINE_ID, FolderLock, Record
from lit_mnist.tracking.process import this_host
from lit_mnist.tracking.queries import search
from lit_mnist.tracking.queries.reader import ClientReader, DatabaseReader, Sort
from lit_mnist.tracking.queries.reap import reap
from lit_mnist.tracking.queries.search import search_experiments, search_runs
from lit_mnist.tracking.run import register_offline_run
from lit_mnist.tracking.store import connect, find_store

SORTS: tuple[Sort, ...] = ("start", "metric", "duration", "status", "name")
STATUS = {"FINISHED": 3, "FAILED": 4, "RUNNING": 1}
LIMIT = 5


class FilledStore:
    """A store's database, and a client of the store."""

    def __init__(self, path: Path, client: MlflowClient) -> None:
        self.path, self.client = path, client

    def fill(self, count: int) -> None:
        """Add runs of every status, some with val/acc, some with val/loss, some with neither or without best/…."""
        metrics = [Metric(name, 0.5, 0, 0) for name in ("best/val/acc", "val/acc", "best/val/loss", "val/loss")]
        source = self.client.create_run("0", tags={"monitor": "val/acc"}, run_name="source").info.run_id
        self.client.log_batch(source, metrics=metrics)
        self.client.set_terminated(source)

        def change(i: int, table: str, row: Row) -> bool:
            monitor = ("val/acc", "val/loss", None)[i % 3]
            value = (i * 7919 % count) / count
            if table == "runs":
                start = row["start_time"] - 1000 * (i * 31 % count)
                row |= {"name": f"run {i * 37 % count}", "status": list(STATUS)[i % 3], "start_time": start}
                row |= {"end_time": start + 100 * (i * 17 % count) + 1}
            elif table == "tags" and row["key"] == "monitor":
                row["value"] = monitor
                return monitor is not None
            elif table == "latest_metrics":
                row["value"] = value if row["key"].startswith("best/") else value - 0.01
                row["is_nan"] = i == 6
                # A run that has not ended has no best value yet, only a last one.
                if row["key"].startswith("best/") and i % 4 == 0:
                    return False
            return True

        copy_runs(self.path, source, count, change)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, FilledStore]]:
    """A tracking server with a few hundred runs."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        store = FilledStore(server.folder / "server.db", MlflowClient(server.uri))
        store.fill(300)
        yield server, store
    finally:
        server.kill()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilledStore]:
    """A project's own store with 1,100 experiments, all newer than the one that has runs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_project(tmp_path_factory.mktemp("many"), patch)
        client = connect(find_store())
        path = folder / "mlruns" / "mlflow.db"
        add_experiments(path, 1100)
        yield FilledStore(path, client)


@pytest.mark.parametrize("sort", SORTS)
def test_the_server_sorts_and_limits_and_both_readers_agree(
    sort: Sort, served: tuple[Server, FilledStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = served
    transferred: list[int] = []  # runs in the response to each request
    original = MlflowClient.search_runs

    def counted(self: MlflowClient, *args: object, **kwargs: object) -> object:
        page = original(self, *args, **kwargs)
        transferred.append(len(page))
        return page

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    found = ClientReader(MlflowClient(server.uri)).list_runs(sort, LIMIT)
    assert [run.id for run in found] == [run.id for run in DatabaseReader(str(store.path)).list_runs(sort, LIMIT)]
    assert len(found) == LIMIT and all(run.experiment == "Default" and run.params == {} for run in found)
    if sort == "metric":
        assert sum(transferred) <= 2 * (LIMIT + 1) * 2 and len(transferred) <= 7
    elif sort != "duration":  # which MLflow cannot order by
        assert transferred == [LIMIT]


@pytest.mark.parametrize("limit", [1, 3, 230, 290])
def test_any_limit_returns_a_prefix_of_the_same_order(limit: int, served: tuple[Server, FilledStore]) -> None:
    _, store = served
    all_ids = [run.id for run in DatabaseReader(str(store.path)).list_runs("metric")]
    assert len(all_ids) == 301
    assert [run.id for run in ClientReader(store.client).list_runs("metric", limit)] == all_ids[:limit]
    assert [run.id for run in DatabaseReader(str(store.path)).list_runs("metric", limit)] == all_ids[:limit]


def test_runs_beyond_the_first_1000_experiments_are_found(
    local: FilledStore, capsys: pytest.CaptureFixture[str]
) -> None:
    client, reader = local.client, ClientReader(local.client)
    assert len(list(search_experiments(client))) == 1101 == len(reader.experiments())
    tags = {"monitor": "val/acc", "sweep.study": "lrs", "sweep.seed": "0", OFFLINE_ID: "f" * 32}
    run_id = client.create_run("0", tags=tags | {"host": this_host(), "process": "999999999@1.0"}).info.run_id
    for sort in SORTS:
        assert [run.id for run in reader.list_runs(sort, 2)] == [run_id]
    assert reader.ids_beginning(run_id[:8]) == reader.ids_beginning("ffff") == [run_id]
    assert [run.id for run in reader.runs([run_id])] == [run.id for run in reader.trial_runs("lrs")] == [run_id]
    assert reader.studies() == ["lrs"]
    reap()
    assert f"run {run_id}" in capsys.readouterr().out
    assert client.get_run(run_id).info.status == "KILLED"
    # An offline run whose registration was interrupted by a crash is recognised, and not created again.
    store = find_store()
    folder = store.run_folder("f" * 32)
    with FolderLock(folder):
        record = Record("f" * 32, "Default", offline=True)
        assert register_offline_run(client, store, folder, record).name == run_id


def test_search_follows_all_pages_and_stops_at_its_limit(
    local: FilledStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = local.client
    ids = [client.create_run("0", tags={"paged": "yes"}).info.run_id for _ in range(5)]
    monkeypatch.setattr(search, "PAGE_SIZE", 2)
    query, order = "tags.paged = 'yes'", ["attributes.start_time ASC"]

    def found(limit: int | None) -> list[str]:
        return [run.info.run_id for run in search_runs(client, query, ["0"], order, limit)]

    assert sorted(found(None)) == sorted(ids)
    assert [len(found(limit)) for limit in (0, 1, 2, 3, 5, 9)] == [0, 1, 2, 3, 5, 5]
    client.delete_run(ids[0])
    assert sorted(found(None)) == sorted(ids[1:])
    assert {run.info.run_id for run in search_runs(client, query, ["0"], deleted=True)} == set(ids)
    assert list(search_runs(client, query, [])) == []


def test_nan_sorts_after_numbers(served: tuple[Server, FilledStore]) -> None:
    _, store = served
    found = [run for run in DatabaseReader(str(store.path)).list_runs("metric") if run.monitor == "val/acc"]
    values = [run.best for run in found if run.best is not None]
    assert math.isnan(values[-1]) and values[:-1] == sorted(values[:-1], reverse=True)
