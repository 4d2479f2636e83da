"""`lit-mnist sync` sends offline runs, and what killed processes had logged, to the store exactly once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from servers import artifacts, stored_history

from lit_mnist.errors import UserError
from lit_mnist.tracking.folder import FolderLock, read_record
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.queries.lookup import find_run, find_unfinished, local_folder, resolve_run
from lit_mnist.tracking.run import Run, clean_folder, open_run, register_offline_run
from lit_mnist.tracking.store import connect, find_store

LOGGING_PROCESS = """
import sys
from lit_mnist.tracking.run import open_run

with open_run("killed", "in mid-run", offline="offline" in sys.argv, system_metrics=False) as run:
    run.log_text("seed: 1", "config.yaml")
    for step in range(10**9):
        run.log_metrics({"loss": step / 2}, step)
        if step == 500:
            print(run.id, flush=True)
            sys.stdin.read(1)
"""


def killed_run(*flags: str) -> str:
    """The id of a run whose process was killed while it logged."""
    command = [sys.executable, "-c", LOGGING_PROCESS, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    return run_id


def all_runs() -> list[MlflowRun]:
    client = connect(find_store())
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return connect(find_store())


def _offline_run() -> Run:
    """A finished offline run with parameters, tags, files, a dataset, a figure and 1,200 points."""
    with open_run("away", "from home", offline=True) as run:
        run.log_params({"depth": 3, "layers": [1, 2]})
        run.set_tags({"colour": "blue"})
        run.log_text("lr: 0.1\n", "config.yaml")
        run.log_dataset("MNIST", "1234", {"train": 5})
        run.submit(lambda: run.set_tags({"later": "too"}))
        for step in range(1200):
            run.log_metrics({"loss": step / 2}, step)
        assert run.history("loss") == [(step, step / 2) for step in range(1200)]
        assert Path(run.log_figure(Figure(), "curves")).exists()
        with pytest.raises(UserError, match=r"is offline: `lit-mnist sync`"):
            run.data()
    clean_folder(run)
    return run


def test_an_offline_run_is_stored_once_however_often_it_is_synced(
    cli: Cli, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _offline_run()
    message = (
        f"lit-mnist: run {run.id} is offline in {run.folder}: `lit-mnist sync` sends it to a tracking store\n"
    )
    assert capsys.readouterr().err == message
    began = read_record(run.folder)
    assert not (project / "mlruns" / "mlflow.db").exists() and began is not None and began.offline
    code, out, err = cli("runs")
    assert (code, err) == (0, "") and out.endswith("1 run has unsent entries: lit-mnist sync\n")
    code, out, err = cli("sync")
    assert (code, err) == (0, "") and f"(offline it was {run.id})" in out
    assert " metric points, 2 parameters" in out and "2 artifacts" in out
    for _ in range(2):
        (found,) = all_runs()
        client, new_id = connect(find_store()), found.info.run_id
        assert found.info.status == "FINISHED" and found.info.run_name == "from home"
        assert found.info.start_time == began.start_time <= found.info.end_time
        assert found.data.params == {"depth": "3", "layers": "[1, 2]"}
        tags = {"colour": "blue", "later": "too", "dataset.name": "MNIST", "offline_id": run.id}
        assert tags.items() <= found.data.tags.items() and "process" in found.data.tags
        assert stored_history(client, new_id, "loss") == [(step, step / 2) for step in range(1200)]
        assert "system/cpu_utilization_percentage" in found.data.metrics
        assert artifacts(client, new_id) == {"config.yaml", "figures/curves.png"}
        assert len(found.inputs.dataset_inputs) == 1
        assert find_run(client, find_store(), run.id[:10]).info.run_id == new_id
        assert cli("sync") == (0, "nothing waits to be sent\n", "")
    assert not list((project / "mlruns" / "runs").iterdir())


def test_an_offline_run_imports_no_mlflow(project: Path) -> None:
    program = LOGGING_PROCESS.replace("sys.stdin.read(1)", "break") + "\nassert 'mlflow' not in sys.modules\n"
    subprocess.run([sys.executable, "-W", "error", "-c", program, "offline"], check=True)


@pytest.mark.parametrize("crash", ["before it is recorded", "before the folder is renamed"])
def test_a_sync_that_is_killed_while_it_registers_a_run_creates_no_second_run(
    crash: str, cli: Cli, client: MlflowClient
) -> None:
    run = _offline_run()
    record = read_record(run.folder)
    assert record is not None
    old = (run.folder / "run.json").read_text()
    moved = register_offline_run(client, find_store(), run.folder, record)
    moved.rename(run.folder)
    if crash == "before it is recorded":
        (run.folder / "run.json").write_text(old)
    assert cli("sync", run.id)[0] == 0
    (found,) = all_runs()
    assert found.info.run_id == record.id and found.info.status == "FINISHED"


@pytest.mark.parametrize("torn", [False, True])
def test_everything_that_a_killed_process_logged_is_sent(torn: bool, cli: Cli, client: MlflowClient) -> None:
    run_id = killed_run()
    folder = local_folder(run_id)
    assert folder is not None
    logged = list(Journal(folder).points())
    assert len(logged) > 500 and [step for *_, step in logged] == list(range(len(logged)))
    assert stored_history(client, run_id, "loss") == []  # killed before its first upload, after three seconds
    if torn:
        with Journal(folder).path.open("a") as file:
            file.write('{"kind":"metrics","poi')
    assert cli("sync")[0] == 0
    assert stored_history(client, run_id, "loss") == [(step, value) for _, value, _, step in logged]
    assert artifacts(client, run_id) == {"config.yaml"} and folder.exists()
    # Also if the mark of what was sent is lost.
    (folder / "spool.sent").unlink()
    assert cli("sync", run_id[:12])[0] == 0
    assert stored_history(client, run_id, "loss") == [(step, value) for _, value, _, step in logged]
    assert cli("sync", run_id) == (0, "nothing waits to be sent\n", "")


def test_a_killed_offline_run_is_resumed_offline_and_then_in_the_store(cli: Cli, project: Path) -> None:
    first = killed_run("offline")
    assert find_unfinished(offline=True) == find_unfinished() == first
    with open_run("", run_id=first[:9], resume=True, offline=True, system_metrics=False) as run:
        assert run.id == first and run.experiment == "killed"
        logged = len(run.history("loss"))
        for step in range(logged - 100, logged + 100):
            run.log_metrics({"loss": step / 2}, step)
        with pytest.raises(UserError, match=r"worked on by another process"), FolderLock(run.folder):
            pass
    assert resolve_run(run.id).status == "FINISHED"
    with pytest.raises(UserError, match="there is no unfinished run"):
        find_unfinished()
    with open_run("", run_id=first, resume=True, system_metrics=False) as run:
        assert run.id != first and run.folder.name == run.id and local_folder(first) == run.folder
        run.log_metrics({"loss": (logged + 100) / 2}, logged + 100)
    assert stored_history(run.client, run.id, "loss") == [(step, step / 2) for step in range(logged + 101)]
    (found,) = all_runs()
    assert found.info.status == "FINISHED" and resolve_run(run.id).status == "FINISHED"
    assert cli("sync")[1] == "nothing waits to be sent\n"


def test_a_run_with_a_live_process_is_not_synced(cli: Cli, project: Path) -> None:
    run = _offline_run()
    with FolderLock(run.folder):
        code, out, err = cli("sync")
    message = f"lit-mnist: run {run.id} is being worked on by another process (pid {os.getpid()} on "
    assert (code, out) == (0, "") and err.splitlines()[-1].startswith(message)
    assert read_record(run.folder).offline


def test_neither_sync_nor_reap_imports_torch(project: Path) -> None:
    killed_run("offline")
    program = (
        "import sys\nfrom lit_mnist.cli import main\n"
        "assert main(['sync']) == main(['runs', '--reap']) == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "metric points" in done.stdout and "is KILLED: its process is gone" in done.stdout


def test_sync_of_an_unknown_run_is_a_one_line_error(cli: Cli, project: Path) -> None:
    code, out, err = cli("sync", "abc")
    assert (code, out) == (2, "") and "'abc'" in err and err.count("\n") == 1


def test_entries_of_a_reopened_run_are_synced_and_its_folder_is_removed(cli: Cli, client: MlflowClient) -> None:
    with open_run("visited", system_metrics=False) as run:
        run.log_metrics({"loss": 1.0}, 1)
    clean_folder(run)
    with open_run("", run_id=run.id) as reopened:
        assert reopened.history("loss") == [(1, 1.0)]
    assert not run.folder.exists()
    reopened.journal.append({"kind": "metrics", "points": [["test/acc", 0.5, 1, 1], ["loss", 2.0, 1, 1]]})
    assert cli("sync")[0] == 0
    assert (
        stored_history(client, run.id, "loss") == [(1, 1.0), (1, 2.0)]
        and run.data().data.metrics["test/acc"] == 0.5
    )
    assert not run.folder.exists() and run.data().info.status == "FINISHED"


def test_unsent_entries_of_a_moved_project_are_synced(
    cli: Cli, project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = killed_run()
    assert json.loads((local_folder(run_id) / "run.json").read_text())["uri"] is None
    moved = tmp_path_factory.mktemp("moved") / "project"
    project.rename(moved)
    monkeypatch.chdir(moved)
    assert cli("sync")[0] == 0 and (moved / "mlruns" / "mlflow.db").exists()
    assert len(stored_history(connect(find_store()), run_id, "loss")) > 500
