"""`lit-mnist runs --reap`: runs that say RUNNING and whose process is gone become KILLED."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.terminal import seconds
from lit_mnist.tracking.folder import BusyError, FolderLock
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter, send_now
from lit_mnist.tracking.process import is_alive, this_host
from lit_mnist.tracking.store import Store, connect, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def reap() -> None:
    """Set the status of this host's dead runs, and say which others are RUNNING where nobody here can look."""
    store = find_store()
    client = connect(store)
    said = [line for run in _running(client) if (line := _reap(client, store, run))]
    print("\n".join(said) or "no run is RUNNING without a process")


def _running(client: "MlflowClient") -> "list[Run]":
    experiments = [e.experiment_id for e in client.search_experiments()]
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            return found


def _reap(client: "MlflowClient", store: Store, run: "Run") -> str | None:
    """What is to be said of a run that says RUNNING; None of one that does run."""
    info, tags = run.info, run.data.tags
    called = f"run {info.run_id} ({info.run_name})"
    host, process = tags.get("host"), tags.get("process")
    if host != this_host() or process is None:
        age = seconds(time.time() - info.start_time / 1000)
        return f"{called} has been RUNNING for {age} on {host or 'an unknown host'}: left alone"
    if is_alive(process):
        return None
    folder = store.run_folder(info.run_id)
    if not folder.is_dir():
        client.set_terminated(info.run_id, "KILLED")
        return f"{called} is KILLED: its process is gone"
    try:
        with FolderLock(folder):
            return f"{called} {_reap_here(client, store, folder)}"
    except BusyError:
        return None


def _reap_here(client: "MlflowClient", store: Store, folder: Path) -> str:
    """Set the status by way of the spool, behind what the process has left there."""
    spool = Journal(folder)
    if spool.status() not in (None, "RUNNING"):
        send_now(MLflowWriter(client, folder.name, spool), store.name)
        return f"is {spool.status()}: its process could not tell the store"
    last_sign = spool.path.stat().st_mtime if spool.path.exists() else time.time()
    spool.append({"kind": "status", "status": "KILLED", "end_time": int(last_sign * 1000)})
    spool.close()
    send_now(MLflowWriter(client, folder.name, spool), store.name)
    return "is KILLED: its process is gone"
