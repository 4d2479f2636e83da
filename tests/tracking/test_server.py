"""A tracking server that hangs or dies during a run: the run continues, and everything arrives exactly once."""

import threading
import time
from operator import attrgetter
from pathlib import Path

import pytest
from conftest import Cli
from matplotlib.figure import Figure
from mlflow import MlflowClient
from servers import Server, artifacts, stored_history, wait_for

from lit_mnist.tracking.run import Run, clean_folder, open_run


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory):
    """A server for all tests of this file, each of which leaves it running."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running_server: Server, project: Path, monkeypatch: pytest.MonkeyPatch):
    """The server as the project's store, with short time limits for the client."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running_server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "6")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield running_server
    if not running_server.answers():
        running_server.kill()
        running_server.start()


@pytest.fixture
def client(server: Server) -> MlflowClient:
    return MlflowClient(server.uri)


def _log(run: Run, steps: range) -> None:
    """Log each of `steps`, as a training does."""
    for step in steps:
        run.log_metrics({"loss": 1 / (step + 1), "lr": 0.1}, step)


def _losses(steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / (step + 1)) for step in range(steps)]


def test_a_server_that_hangs_for_a_while_causes_one_warning_and_loses_nothing(
    server: Server, client: MlflowClient, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_run("hangs", "in the middle", system_metrics=False) as run:
        run.uploader.interval = 0.3
        _log(run, range(100))
        wait_for(run.journal.is_sent, "the first points")
        server.hang()
        _log(run, range(100, 3000))
        wait_for(lambda: run.uploader.away, "the warning")
        # If each call waited for its request, this would take hours.
        _log(run, range(3000, 4000))
        assert run.history("loss") == _losses(4000)
        # Meanwhile the uploader tries again: the resumed server will handle the requests that timed out as well.
        time.sleep(2)
        server.resume()
        wait_for(lambda: not run.uploader.away and run.journal.is_sent(), "the rest")
        run.log_metrics({"loss": 1 / 4001}, 4000)
    assert stored_history(client, run.id, "loss") == _losses(4001)
    assert stored_history(client, run.id, "lr") == [(step, 0.1) for step in range(4000)]
    assert run.data().info.status == "FINISHED"
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split(" (")[0] for line in err.splitlines()] == [
        f"lit-mnist: warning: the tracking store {server.uri} does not take what it is sent",
        f"lit-mnist: the tracking store {server.uri} is back",
    ]
    assert str(run.journal.path) in err and "`lit-mnist sync`" in err
    clean_folder(run)
    assert not run.folder.exists()


def test_a_run_ends_although_its_server_hangs(server: Server, client: MlflowClient, cli: Cli) -> None:
    with open_run("hangs", "to the end", system_metrics=False) as run:
        _log(run, range(100))
        server.hang()
        _log(run, range(100, 1500))
    clean_folder(run)
    waiting = run.journal.waiting()
    # The run did not wait for the server, which still does not answer.
    assert run.folder.exists() and waiting > 0 and run.journal.status() == "FINISHED"
    server.resume()  # and handles the requests that timed out
    wait_for(
        lambda: "lit-mnist-uploader" not in map(attrgetter("name"), threading.enumerate()), "its thread's end"
    )
    assert run.journal.waiting() == waiting
    assert cli("sync", run.id[:8])[0] == 0
    assert cli("sync") == (0, "nothing waits to be sent\n", "")
    assert stored_history(client, run.id, "loss") == _losses(1500)
    assert run.data().info.status == "FINISHED" and not run.folder.exists()


def test_what_a_killed_server_missed_is_synced_once_it_is_back(
    server: Server, client: MlflowClient, cli: Cli, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lit_mnist.tracking.run.PATIENCE", 1.0)
    with open_run("dies", "in the middle", system_metrics=False) as run:
        run.log_params({"depth": 3})
        run.uploader.interval = 0.3
        _log(run, range(50))
        wait_for(run.journal.is_sent, "the first points")
        server.kill()
        _log(run, range(50, 2500))
        run.log_params({"late": [1, 2]})
        run.log_text("lr: 0.1\n", "config.yaml")
        wait_for(lambda: run.uploader.away, "the warning")
        figure = run.log_figure(Figure(), "curves")
        assert Path(figure).read_bytes().startswith(b"\x89PNG")
        ended = time.time()
    closed = time.time()
    clean_folder(run)
    err = capsys.readouterr().err
    assert err.count("warning: ") == 2 and err.endswith("`lit-mnist sync` sends them\n")
    waiting = run.journal.waiting()
    assert f"{waiting} entries of run {run.id} wait in {run.journal.path}" in err

    code, out, err = cli("sync")
    assert code == 1 and err.startswith(f"lit-mnist: error: cannot open the tracking store {server.uri}: ")
    assert err.endswith("start it, or take `lit-mnist fit --offline`\n")
    assert err.count("\n") == 1 and run.journal.waiting() == waiting

    server.start()
    assert "1 run has unsent entries: lit-mnist sync" in cli("runs")[1]
    assert run.data().info.status == "RUNNING"
    code, out, err = cli("sync")
    printed = f"run {run.id}: 4900 metric points, 1 parameter, 2 artifacts to {server.uri}\n"
    assert (code, out, err) == (0, printed, "")
    for _ in range(2):
        found = run.data()
        assert found.data.params == {"depth": "3", "late": "[1, 2]"}
        assert found.info.status == "FINISHED" and int(1000 * ended) <= found.info.end_time <= 1000 * closed
        assert stored_history(client, run.id, "loss") == _losses(2500)
        assert artifacts(client, run.id) == {"config.yaml", "figures/curves.png"}
        assert not run.folder.exists()
        assert cli("sync") == (0, "nothing waits to be sent\n", "")
    assert "unsent" not in cli("runs")[1]
