"""`lit-mnist ui` serves the project's store on loopback only."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from conftest import Cli
from servers import free_port

from lit_mnist.tracking.pages import run_page, show_page
from lit_mnist.tracking.queries.reader import ClientReader
from lit_mnist.tracking.store import Store, connect, experiment_id, find_store

TIMEOUT = 120


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def port(taken_port: int) -> int:
    """A free port, other than `taken_port`."""
    return free_port()


def _response(address: str, body: dict[str, object] | None = None) -> str:
    """The server's response; waits until it answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                assert response.status == 200
                return response.read().decode()
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the UI does not answer"
            time.sleep(0.2)


def test_ui_shows_the_projects_experiments_on_loopback_only(project: Path, port: int) -> None:
    store = find_store()
    experiment_id(connect(store), store, "to be seen")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "lit_mnist.cli", "ui", "--port", str(port)]
    with (
        (project / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as server,
    ):
        try:
            assert "MLflow" in _response(f"http://127.0.0.1:{port}/")
            found = _response(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", {"max_results": 9})
            processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            listening = {c.laddr for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    assert "to be seen" in [experiment["name"] for experiment in json.loads(found)["experiments"]]
    assert listening == {("127.0.0.1", port)}
    printed = (project / "log").read_text()
    assert f"MLflow on sqlite:///{project}/mlruns/mlflow.db\n" in printed
    assert f"all experiments   http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning\n" in printed
    assert f"ssh -L {port}:127.0.0.1:{port} " in printed


def test_links_of_the_newest_studies_are_printed_without_a_server(cli: Cli) -> None:
    store = find_store()
    client = connect(store)
    experiment = experiment_id(client, store, "sweeps/a")
    confirmation = {"sweep.role": "study", "sweep.study": "a/confirm-1", "mlflow.parentRunId": "a" * 32}
    client.create_run(experiment, tags=confirmation)
    for name in ("a", "b"):
        tags = {"sweep.role": "study", "sweep.study": name, **({"sweep.result": "acc 0.9"} if name == "b" else {})}
        run = client.create_run(experiment, tags=tags)
    code, out, err = cli("ui", "--print-links", "--port", "7000")
    page = f"http://127.0.0.1:7000/#/experiments/{experiment}/runs/{run.info.run_id}?workflowType=machine_learning"
    assert (code, err) == (0, "")
    assert out.splitlines()[2:4] == ["  study b: acc 0.9", f"    {page}"] and out.splitlines()[4] == "  study a"
    assert out.splitlines()[-1] == "`lit-mnist ui --port 7000` serves them" and "confirm" not in out
    assert [run.tags["sweep.study"] for run in ClientReader(client).study_runs(1)] == ["b"]


def test_a_server_has_its_pages_at_its_own_address_without_the_password(project: Path) -> None:
    store = Store("https://someone:secret@server:5000/mlflow/", project)
    page = "https://server:5000/mlflow/#/experiments/1/runs/ab?workflowType=machine_learning"
    assert run_page(store, "1", "ab") == page and show_page(store, "1", "ab") == f"page: {page}"


def test_taken_port_is_a_one_line_error(taken_port: int, cli: Cli) -> None:
    code, out, err = cli("ui", "--port", str(taken_port))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"lit-mnist: error: --port {taken_port} cannot be used (")
