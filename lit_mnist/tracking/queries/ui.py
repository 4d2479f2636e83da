"""`lit-mnist ui`: MLflow's UI on the right store, on loopback, with few processes."""

import os
import platform
import socket
import sys

from lit_mnist.errors import UsageError
from lit_mnist.tracking.provenance import user_name
from lit_mnist.tracking.store import POOL, connect, find_store, with_time_limit

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
        print(f"the store is a server with a UI of its own: {store.name}/{PAGE}")
        return
    _check_free(port)
    connect(store)
    print(f"MLflow on {store.name}")
    print(f"  here:    http://{HOST}:{port}/{PAGE}")
    print(f"  remote:  ssh -L {port}:{HOST}:{port} {user_name()}@{platform.node()}, then the same address")
    print("Ctrl-C ends it.", flush=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--artifacts-destination", f"{store.home / 'artifacts'}",
        "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore",
            # Not an argument: those of a process can be read by everybody on the machine.
            "MLFLOW_BACKEND_STORE_URI": with_time_limit(store.uri)}  # fmt: skip
    os.environ.pop(POOL, None)  # meant for this process, see `import_mlflow`
    os.execve(command[0], command, {**os.environ, **lean})


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"--port {port} cannot be used ({error}): take another") from None
