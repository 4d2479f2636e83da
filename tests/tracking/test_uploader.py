"""Everything that is logged reaches the store, and no failure of the upload stops the run."""

import math
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import artifacts, stored_history, wait_for

from lit_mnist.tracking.run import clean_folder, open_run
from lit_mnist.tracking.store import connect, find_store


def _lock(store_uri: str) -> sqlite3.Connection:
    """Lock the database, so that no other connection can use it."""
    connection = sqlite3.connect(store_uri.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_everything_is_in_the_store_when_the_run_ends(project: Path) -> None:
    with open_run("upload", system_metrics=False) as run:
        run.log_params({f"p{i}": i for i in range(250)} | {"long": "x" * 7000})
        run.set_tags({"colour": "blue"})
        run.log_metrics({"a": math.nan, "b": math.inf}, 3)
        run.log_dataset("MNIST", "1234", {"train": 5})
        (project / "elsewhere.txt").write_text("from outside")
        run.log_file(project / "elsewhere.txt", "notes")
        (project / "elsewhere.txt").unlink()
        (run.folder / "best.ckpt").write_bytes(b"weights")
        run.log_file(run.folder / "best.ckpt", "checkpoints")
        run.sync()
    found = run.data()
    assert found.info.status == "FINISHED" and found.info.end_time >= found.info.start_time
    assert len(found.data.params) == 251 and found.data.params["p249"] == "249"
    assert found.data.params["long"] == "see the artifact params/long.txt"
    assert math.isnan(found.data.metrics["a"]) and found.data.metrics["b"] > 1e300
    assert {"colour": "blue", "dataset.name": "MNIST", "dataset.digest": "1234"}.items() <= found.data.tags.items()
    assert [entry.dataset.digest for entry in found.inputs.dataset_inputs] == ["1234"]
    expected = {"params/long.txt", "notes/elsewhere.txt", "checkpoints/best.ckpt"}
    assert artifacts(run.client, run.id) == expected
    assert Path(run.locate("notes/elsewhere.txt")).read_text() == "from outside"
    clean_folder(run)
    assert not run.folder.exists()


def test_more_points_than_one_request_may_hold_are_all_stored(project: Path) -> None:
    with open_run("upload", system_metrics=False) as run:
        for step in range(2500):
            run.log_metrics({"loss": step / 2, "epoch": 0}, step)
        run.log_metrics({f"many{i}": i for i in range(1500)}, 0)
        assert run.history("loss") == [(step, step / 2) for step in range(2500)]
    assert stored_history(run.client, run.id, "loss") == run.history("loss")
    assert len(run.data().data.metrics) == 1502


def test_no_step_is_logged_twice_in_a_fit(project: Path) -> None:
    with open_run("upload", system_metrics=False) as run:
        for step, value in ((0, 1.0), (5, 0.5), (5, 9.0), (4, 9.0), (6, 0.4)):
            run.log_metrics({"loss": value}, step)
        run.log_metrics({"loss": 9.0, "late": 1.0}, 6)
    assert stored_history(run.client, run.id, "loss") == run.history("loss") == [(0, 1.0), (5, 0.5), (6, 0.4)]
    assert run.history("late") == [(6, 1.0)]


def test_nested_background_tasks_are_done_before_the_run_ends(project: Path) -> None:
    with open_run("upload", system_metrics=False) as run:
        run.submit(lambda: run.submit(lambda: run.set_tags({"deep": "down"})))
    assert run.data().data.tags["deep"] == "down" and run.data().info.status == "FINISHED"
    assert [entry["kind"] for _, entry in run.journal.entries()] == ["tags", "status"]


def test_a_background_task_that_fails_is_a_warning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConnectionError("gone for good")

    with open_run("upload", system_metrics=False) as run:
        run.submit(fail)
        run.submit(lambda: run.set_tags({"after": "all"}))
    assert run.data().data.tags["after"] == "all" and run.data().info.status == "FINISHED"
    warning = "lit-mnist: warning: a part of the run's description is missing: gone for good\n"
    assert capsys.readouterr().err == warning


def test_refused_entries_do_not_hold_back_others(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run("upload", system_metrics=False) as run:
        run.log_params({"lr": 1, "depth": 2})
        run.log_metrics({"good": 1.0, "not a name: \0": 2.0, "better": 3.0}, 1)
        run.log_params({"lr": 5, "width": 4})
        (run.folder / "gone").touch()
        run.log_file(run.folder / "gone", "files")
        (run.folder / "gone").unlink()
        run.set_tags({"after": "all"})
    found = run.data()
    assert found.info.status == "FINISHED" and found.data.tags["after"] == "all"
    assert found.data.params == {"lr": "1", "depth": "2", "width": "4"}
    assert found.data.metrics == {"good": 1.0, "better": 3.0}
    warnings = capsys.readouterr().err.splitlines()
    assert [f"refuses a part of run {run.id} ({kind})" in line for kind, line in zip(
        ("metrics", "params", "file"), warnings, strict=True)] == [True] * 3  # fmt: skip
    assert len((run.folder / "spool.refused").read_text().splitlines()) == 3
    clean_folder(run)
    assert run.folder.exists()


def test_a_run_is_finished_in_its_journal_if_its_store_stays_locked(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.tracking.run.PATIENCE", 0.5)
    with open_run("upload", system_metrics=False) as run:
        lock = _lock(run.store.uri)
        run.log_metrics({"loss": 1.0}, 1)
    err = capsys.readouterr().err
    assert f"2 entries of run {run.id} wait in {run.journal.path}; `lit-mnist sync` sends them\n" in err
    lock.close()
    assert run.journal.status() == "FINISHED" and run.data().info.status == "RUNNING"
    clean_folder(run)
    assert run.folder.exists()


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, "KILLED"), (ZeroDivisionError, "FAILED")])
def test_the_status_tells_how_a_run_ended(raised: type[BaseException], status: str, project: Path) -> None:
    with pytest.raises(raised), open_run("upload", system_metrics=False) as run:
        raise raised
    assert run.data().info.status == status and run.journal.status() == status
    assert ("error" in run.data().data.tags) == (status == "FAILED")


def test_system_metrics_have_mlflows_names(project: Path) -> None:
    with open_run("upload") as run:
        wait_for(lambda: run.history("system/cpu_utilization_percentage"), "a sample")
    metrics = run.data().data.metrics
    for name in ("system_memory_usage_percentage", "disk_available_megabytes", "network_receive_megabytes"):
        assert f"system/{name}" in metrics
    first = max(step for _, _, _, step in run.journal.points())
    with open_run("upload", run_id=run.id, resume=True):
        pass
    steps = [step for step, _ in stored_history(run.client, run.id, "system/cpu_utilization_percentage")]
    assert len(set(steps)) == len(steps) >= 3 and steps[-1] > first


def test_short_runs_have_no_system_metrics_unless_asked_for(project: Path) -> None:
    for asked, sampled in ((None, False), (True, True), (False, False)):
        with open_run("upload", system_metrics=asked) as run:
            run.log_metrics({"loss": 1.0}, 0)
        names = run.data().data.metrics
        assert ("system/cpu_utilization_percentage" in names) == sampled and "loss" in names


def test_runs_that_log_the_same_dataset_at_once_all_have_it(project: Path) -> None:
    runs, rounds = 8, 5
    barrier = threading.Barrier(runs)

    def log(number: int) -> tuple[str, bool]:
        with open_run("together", system_metrics=False) as run:
            for turn in range(rounds):
                barrier.wait()
                run.log_dataset("MNIST", f"{turn}", {"train": 5})
                run.sync()
        return str(run.id), run.journal.refused.exists()

    connect(find_store())
    with ThreadPoolExecutor(runs) as pool:
        found = dict(pool.map(log, range(runs)))
    assert not any(found.values())
    inputs = [connect(find_store()).get_run(run_id).inputs.dataset_inputs for run_id in found]
    assert [len(each) for each in inputs] == [rounds] * runs
