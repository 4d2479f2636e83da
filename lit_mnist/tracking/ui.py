"""`lit-mnist ui`: MLflow's UI on the right store, on loopback, with few processes."""

import os
import platform
import socket
import sys

from lit_mnist.errors import UsageError
from lit_mnist.tracking.provenance import user_name
from lit_mnist.tracking.store import connect, find_store

HOST = "127.0.0.1"
PAGE = "#/experiments?workflowType=machine_learning"
"""MLflow would open in its mode for language models."""


def serve(port: int) -> None:
    """Serve the UI until it is interrupted.

    Raises:
        UsageError: the port is taken.

    """
    store = find_store()
    if store.uri.startswith(("http:", "https:")):
        print(f"the store is a server with a UI of its own: {store.uri}/{PAGE}")
        return
    _check_free(port)
    connect(store)
    print(f"MLflow on {store.uri}")
    print(f"  here:    http://{HOST}:{port}/{PAGE}")
    print(f"  remote:  ssh -L {port}:{HOST}:{port} {user_name()}@{platform.node()}, then the same address")
    print("Ctrl-C ends it.", flush=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", store.uri, "--artifacts-destination", f"{store.home / 'artifacts'}",
        "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore"}  # fmt: skip
    os.execve(command[0], command, {**os.environ, **lean})


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"--port {port} cannot be used ({error}): take another") from None
