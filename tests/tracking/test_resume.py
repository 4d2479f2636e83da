"""Resumed runs: the same run, no point twice, and one process at a time."""

import subprocess
import sys
from pathlib import Path

import pytest
from servers import stored_history, wait_for
from test_sync import killed_run

from lit_mnist.errors import UserError
from lit_mnist.tracking.queries.lookup import fetch_folder, find_unfinished, local_folder, resolve_run
from lit_mnist.tracking.run import clean_folder, open_run

SECOND_PROCESS = """
import sys
from lit_mnist.guard import guarded
from lit_mnist.tracking.run import open_run

def work():
    with open_run("", run_id=sys.argv[1], resume=True):
        pass

sys.exit(guarded(work))
"""


def test_a_killed_run_goes_on_and_logs_no_point_twice(project: Path) -> None:
    run_id = killed_run()
    folder = local_folder(run_id)
    assert folder is not None and resolve_run(folder.name).status == "RUNNING" and find_unfinished() == run_id
    with open_run("", run_id=run_id, resume=True, system_metrics=False) as run:
        assert run.id == run_id and run.experiment == "killed" and run.folder == folder
        assert run.data().info.status == "RUNNING" and run.data().data.tags["process"]
        logged = len(run.history("loss"))
        assert logged > 500
        for step in range(logged - 200, logged + 200):  # resumed from a checkpoint before the last point
            run.log_metrics({"loss": step / 2}, step)
        assert run.history("loss") == [(step, step / 2) for step in range(logged + 200)]
        wait_for(run.journal.is_sent, "an upload")
        assert run.data().info.status == "RUNNING" and run.data().info.end_time is None
    assert stored_history(run.client, run_id, "loss") == run.history("loss")
    assert run.data().info.status == "FINISHED"


def test_a_finished_run_whose_folder_is_gone_goes_on(project: Path) -> None:
    with open_run("longer", "first", system_metrics=False) as run:
        run.log_text("lr: 1", "config.yaml")
        for step in range(0, 30, 10):
            run.log_metrics({"loss": step / 2, "other": 0.5}, step)
    clean_folder(run)
    assert local_folder(run.id) is None
    found = resolve_run(run.id[:8])
    fetch_folder(found, ("config.yaml", "no.such"), ("checkpoints",))
    folder = found.folder
    assert [path.name for path in folder.iterdir()] == ["config.yaml"] and folder == run.folder
    assert list(folder.parent.iterdir()) == [folder] and resolve_run(folder.name).status == "FINISHED"
    with pytest.raises(ZeroDivisionError), open_run("", run_id=run.id, resume=True, system_metrics=False) as more:
        assert more.data().info.status == "RUNNING" and more.experiment == "longer"
        for step in range(10, 50, 10):
            more.log_metrics({"loss": step / 2}, step)
        raise ZeroDivisionError
    # Once more: the first half of the history is known only because it was fetched.
    with open_run("", run_id=run.id, resume=True, system_metrics=False) as more:
        more.log_metrics({"loss": 9.0, "other": 9.0}, 20)
        more.log_metrics({"loss": 25.0}, 50)
    assert stored_history(run.client, run.id, "loss") == more.history("loss")
    assert more.history("loss") == [(step, step / 2) for step in range(0, 60, 10)]
    assert len(more.history("other")) == 3 and run.data().info.status == "FINISHED"


def test_a_run_is_refused_to_a_second_process(project: Path) -> None:
    with open_run("one", system_metrics=False) as run:
        command = [sys.executable, "-c", SECOND_PROCESS, run.id]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.data().info.status == "RUNNING"
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    message = f"lit-mnist: error: run {run.id} is being worked on by another process (pid "
    assert done.stderr.startswith(message)
    assert run.data().info.status == "FINISHED"


def test_reopening_a_run_keeps_its_status_and_may_log_a_step_again(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run("visited", system_metrics=False) as run:
        run.log_metrics({"test/acc": 0.5}, 7)
        raise ZeroDivisionError
    before = sorted(path.name for path in run.folder.iterdir())
    for value in (0.5, 0.75):
        with open_run("", run_id=run.id) as reopened:
            reopened.log_metrics({"test/acc": value}, 7)
    assert stored_history(run.client, run.id, "test/acc") == [(7, 0.5), (7, 0.5), (7, 0.75)]
    assert run.data().info.status == "FAILED"
    assert sorted(path.name for path in run.folder.iterdir()) == before


@pytest.mark.parametrize("offline", [False, True])
def test_an_unknown_run_is_a_one_line_error(offline: bool, project: Path) -> None:
    with pytest.raises(UserError, match="'abc'"), open_run("", run_id="abc", resume=True, offline=offline):
        pass
