"""`lit-mnist ui`: MLflow's UI on the project's store, on loopback, with as few processes as possible."""

import os
import platform
import socket
import sys

from lit_mnist.errors import UsageError
from lit_mnist.tracking.provenance import user_name
from lit_mnist.tracking.store import POOL, connect, find_store, with_time_limit

HOST = "127.0.0.1"
PAGE = "#/experiments?workflowType=machine_learning"
"""The page to open. Without the parameter, MLflow 3.17 opens in its mode for language models."""


def serve(port: int) -> None:
    """Replace this process by the UI's server, which runs until it is interrupted.

    A store that is a server has a UI of its own: its address is printed instead.

    Raises:
        UsageError: the port is taken.

    """
    store = find_store()
    if store.uri.startswith(("http:", "https:")):
        print(f"the store is a server with a UI of its own: {store.name}/{PAGE}")
        return
    with socket.socket() as probe:
        # As the server does: without it a port counts as taken for a minute after its last server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"--port {port} cannot be used ({error}): take another") from None
    connect(store)
    print(f"MLflow on {store.name}")
    print(f"  here:    http://{HOST}:{port}/{PAGE}")
    print(f"  remote:  ssh -L {port}:{HOST}:{port} {user_name()}@{platform.node()}, then the same address")
    print("Ctrl-C ends it.", flush=True)
    # By default MLflow 3.17 starts 4 workers and 7 job consumers, which take 14 s and 1.9 GB; this takes 5.5 s and
    # 0.5 GB.
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--artifacts-destination", f"{store.home / 'artifacts'}",
        "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
        # Not as an argument, which every user of the machine can read: the URI may hold a password.
        "MLFLOW_BACKEND_STORE_URI": with_time_limit(store.uri),
    }
    environment = {**os.environ, **settings}
    environment.pop(POOL, None)  # `connect` sets it, for this process only
    os.execve(command[0], command, environment)
