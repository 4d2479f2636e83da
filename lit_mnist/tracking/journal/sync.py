"""`lit-mnist sync`: send the entries that runs logged while their store was unreachable, or while offline."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.errors import UsageError, UserError
from lit_mnist.terminal import note
from lit_mnist.tracking.folder import (
    RECORD,
    BusyError,
    FolderLock,
    Record,
    has_unsent,
    journals,
    read_record,
    remove_if_done,
    run_folders,
)
from lit_mnist.tracking.journal.journal import MAIN, Journal
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter, send_now
from lit_mnist.tracking.liveness import HEARTBEAT
from lit_mnist.tracking.queries.lookup import local_folder
from lit_mnist.tracking.run import register_offline_run
from lit_mnist.tracking.store import Store, connect, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

COUNTED = {"metrics": "metric point", "params": "parameter", "tags": "tag", "artifacts": "artifact"}
"""Kinds of items whose number is printed, with their singular names."""


def sync(run_id: str | None = None) -> None:
    """Send unsent entries of the run `run_id`, or of all runs with a folder here, each to its own store.

    Raises:
        UserError: there is no such run, or a store does not accept an entry; unsent entries are kept.

    """
    # The store in use is for runs that were offline; all others already have a store.
    store, clients = find_store(), Clients()
    if run_id is None:
        folders = run_folders(store.home)
    elif (found := local_folder(run_id, store.home)) is not None:
        folders = [found]
    else:
        raise UsageError(f"no folder in {store.home / 'runs'} is that of one run {run_id!r}")
    waiting = [folder for folder in folders if has_unsent(folder)]
    if not waiting:
        print("nothing waits to be sent")
    # An unreachable store must not keep runs of other stores from being sent.
    failures = []
    for folder in waiting:
        try:
            _sync_run(folder, store, clients)
        except BusyError as busy:
            note(f"{busy}: skipped")
        except UserError as error:
            failures.append(str(error))
    if failures:
        # Each reason once, since all runs of an unreachable store have the same reason.
        raise UserError("; ".join(dict.fromkeys(failures)))


class Clients:
    """Cached clients of stores; opening a store may take seconds, and is also tried only once if it fails."""

    def __init__(self) -> None:
        self._found: dict[str, MlflowClient | UserError] = {}

    def connect(self, store: Store) -> "MlflowClient":
        """Return the client of `store`.

        Raises:
            UserError: it cannot be opened.

        """
        if store.uri not in self._found:
            try:
                self._found[store.uri] = connect(store)
            except UserError as error:
                self._found[store.uri] = error
        found = self._found[store.uri]
        if isinstance(found, UserError):
            raise found
        return found


def _sync_run(folder: Path, current: Store, clients: Clients) -> None:
    """Send the journals in one run's folder, print what was sent, and remove the folder if the run is over."""
    # The lock excludes a run that is in use, which sends its journal itself.
    with FolderLock(folder):
        record = read_record(folder) or Record(folder.name, "", uri=current.portable_uri)
        store = record.store(current)
        client = clients.connect(store)
        folder = register_offline_run(client, store, folder, record)
        counts: Counter[str] = Counter()
        try:
            for journal in journals(folder):
                _sync_journal(MLflowWriter(client, record.id, journal), store, counts)
        finally:
            sent = [f"{n} {COUNTED[kind]}{'s' if n > 1 else ''}" for kind in COUNTED if (n := counts[kind])]
            was = f" (offline it was {record.offline_id})" if record.offline_id else ""
            print(f"run {record.id}: {', '.join(sent) or 'nothing new'}{was} to {store.name}", flush=True)
        # Remove the folder of a finished run, or a folder that was only created for measuring a run.
        is_bare = {path.name for path in folder.iterdir()} <= {RECORD, HEARTBEAT, ".lock"}
        if is_bare or Journal(folder).status() == "FINISHED":
            remove_if_done(folder)


def _sync_journal(writer: MLflowWriter, store: Store, counts: "Counter[str]") -> None:
    """Send one journal, and add to `counts` what was sent."""
    journal = writer.journal
    try:
        # `_sync_run` already holds the lock of the main journal.
        if journal.name == MAIN:
            send_now(writer, store.name)
            return
        with FolderLock(journal.folder, journal.name) as lock:
            send_now(writer, store.name)
            journal.remove()
            lock.path.unlink(missing_ok=True)
    except BusyError as busy:  # a process that measures the run sends its journal itself
        note(f"{busy}: skipped")
    finally:
        counts += writer.counts
