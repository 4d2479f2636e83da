"""Real MLflow servers that can hang, be killed and be started again, and functions that read their stores."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # conftest.py imports this file: mlflow would delay every test by seconds
    from mlflow import MlflowClient

START_TIMEOUT = 180
"""Seconds. On two busy cores a server has taken more than a minute to start."""
WITHOUT_EXTRAS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def free_port() -> int:
    """A port of the loopback interface on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server` on a database in `folder`; every start serves the same store on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts",
        ]  # fmt: skip
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **WITHOUT_EXTRAS}, start_new_session=True
            )
        try:
            wait_for(self.answers, "a server that answers")
        except AssertionError:
            self.kill()
            raise

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def hang(self) -> None:
        """Suspend the server: it accepts connections and does not answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)


def wait_for(condition: Callable[[], object], what: str, timeout: float = START_TIMEOUT) -> None:
    """Wait until the condition is true; fails after `timeout` seconds, with `what` in the message."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.05)


def stored_history(client: "MlflowClient", run_id: str, metric: str) -> list[tuple[int, float]]:
    """All points of the metric in the store, (step, value); a point that was stored twice is there twice."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, metric))


def artifacts(client: "MlflowClient", run_id: str, folder: str | None = None) -> set[str]:
    """The paths of all artifacts of the run."""
    found: set[str] = set()
    for item in client.list_artifacts(run_id, folder):
        found |= artifacts(client, run_id, item.path) if item.is_dir else {item.path}
    return found
