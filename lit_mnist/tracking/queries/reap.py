"""`lit-mnist runs --reap`: set runs that are RUNNING although their process is dead to KILLED."""

import time
from typing import TYPE_CHECKING

from lit_mnist.tracking.folder import BusyError, FolderLock, read_record
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter, send_now
from lit_mnist.tracking.liveness import State, find_liveness
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.store import Store, connect, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def reap() -> None:
    """Set the status of dead runs, and list the RUNNING runs that may be alive, which are not changed."""
    store = find_store()
    client = connect(store)
    # Collect all runs first, since setting a status shifts the later pages of the search.
    running = list(search_runs(client, "attributes.status = 'RUNNING'"))
    lines = [line for run in running if (line := _reap_run(client, store, run))]
    print("\n".join(lines) or "no run is RUNNING without a process")


def _reap_run(client: "MlflowClient", store: Store, run: "Run") -> str | None:
    """Set the run's status if its process is dead; return what to print, None for a run that is alive."""
    info, tags = run.info, run.data.tags
    title = f"run {info.run_id} ({info.run_name})"
    folder = store.run_folder(info.run_id)
    liveness = find_liveness(folder if folder.is_dir() else None, read_record(folder), tags)
    if liveness.state is State.ALIVE:
        return None
    if liveness.state is not State.DEAD:
        return f"{title} is left alone: it {liveness.reason}"
    # Without a folder there are no unsent entries before the status.
    if not folder.is_dir():
        client.set_terminated(info.run_id, "KILLED")
        return f"{title} is KILLED: its process is gone"
    try:
        # The lock is the last check, since another process may be resuming the run at this moment.
        with FolderLock(folder):
            journal = Journal(folder)
            status = journal.status()
            if status in (None, "RUNNING"):
                status = "KILLED"
                # The status is sent through the journal, after all unsent entries. The journal's last change is
                # the best estimate of the time when the process died.
                died = journal.path.stat().st_mtime if journal.path.exists() else time.time()
                journal.append({"kind": "status", "status": status, "end_time": int(died * 1000)})
                journal.close()
                cause = "its process is gone"
            else:
                cause = "its status had not reached the store"
            send_now(MLflowWriter(client, folder.name, journal), store.name)
            return f"{title} is {status}: {cause}"
    except BusyError:
        return None
