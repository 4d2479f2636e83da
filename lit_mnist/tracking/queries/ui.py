"""`lit-mnist ui`: MLflow's UI on the project's store, on loopback, with as few processes as possible."""

import os
import platform
import socket
import sys

from lit_mnist.errors import UsageError
from lit_mnist.tracking.mlflow_private import ui_path
from lit_mnist.tracking.pages import HOST, PORT, has_own_ui, run_page, ui_address
from lit_mnist.tracking.provenance import user_name
from lit_mnist.tracking.queries.reader import RESULT, STUDY, open_reader
from lit_mnist.tracking.store import POOL, Store, connect, find_store, with_time_limit

MOST_STUDIES = 5
"""Studies whose pages are printed."""


def print_links(store: Store, port: int) -> None:
    """Print the addresses of the UI's first page and of the runs of the newest studies."""
    print(f"MLflow on {store.name}")
    print(f"  all experiments   {ui_address(store, port)}{ui_path('')}")
    # The runs of studies have summary, figures and links to the trials.
    studies = open_reader(store).study_runs(3 * MOST_STUDIES)
    # The results of a confirmation are on the page of its study, the parent of the confirmation's run.
    for run in [run for run in studies if "mlflow.parentRunId" not in run.tags][:MOST_STUDIES]:
        result = f": {run.tags[RESULT]}" if RESULT in run.tags else ""
        print(f"  study {run.tags[STUDY]}{result}\n    {run_page(store, run.experiment_id, run.id, port)}")


def serve(port: int, links_only: bool = False) -> None:
    """Print the pages' addresses and replace this process by the UI's server, which runs until it is interrupted.

    If the store is a server, it has its own UI, and only the addresses are printed.

    Args:
        port: The port of the server.
        links_only: Print the addresses and start nothing.

    Raises:
        UsageError: the port is taken.

    """
    store = find_store()
    if links_only or has_own_ui(store):
        print_links(store, port)
        if not has_own_ui(store):
            print(f"`lit-mnist ui{f' --port {port}' if port != PORT else ''}` serves them")
        elif not links_only:
            print("the store is a server with a UI of its own: nothing to start")
        return
    with socket.socket() as probe:
        # As the server does; without this option, a port is unavailable for a minute after its last server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"--port {port} cannot be used ({error}): take another") from None
    # Create a missing database under its lock, before the server's processes all try to do so.
    connect(store)
    print_links(store, port)
    print(
        f"from another machine: ssh -L {port}:{HOST}:{port} {user_name()}@{platform.node()}, then the same address"
    )
    print("Ctrl-C ends it.", flush=True)
    # By default MLflow 3.17 starts 4 workers and 7 job consumers, which take 14 s and 1.9 GB; this takes 5.5 s and
    # 0.5 GB.
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--artifacts-destination", f"{store.home / 'artifacts'}",
    ]  # fmt: skip
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
        # Not as an argument, which MLflow 3.1 does not know: its server is gunicorn.
        "MLFLOW_UVICORN_OPTS": "--log-level warning",
        # Not as an argument, which all users of the machine can read: the URI may contain a password.
        "MLFLOW_BACKEND_STORE_URI": with_time_limit(store.uri),
    }
    environment = {**os.environ, **settings}
    environment.pop(POOL, None)  # `connect` sets it, for this process only
    # Replace this process, so that Ctrl-C and signals reach the server.
    os.execve(command[0], command, environment)
