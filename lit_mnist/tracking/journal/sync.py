"""`lit-mnist sync`: send what runs have kept while their store was away, or while they were offline."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.errors import UsageError, UserError
from lit_mnist.terminal import note
from lit_mnist.tracking.creation import adopt, recorded_uri
from lit_mnist.tracking.folder import (
    RECORD,
    BusyError,
    FolderLock,
    Record,
    has_unsent,
    read_record,
    remove_if_done,
    run_folders,
    spools,
)
from lit_mnist.tracking.journal.journal import MAIN, Journal
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter, deliver_now
from lit_mnist.tracking.liveness import HEARTBEAT
from lit_mnist.tracking.queries.lookup import local_folder
from lit_mnist.tracking.store import Store, connect, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

KINDS = {"metrics": "metric point", "params": "parameter", "tags": "tag", "artifacts": "artifact"}
"""What is counted, and how it is called."""


class Stores:
    """Clients of stores; one that does not answer is asked once."""

    def __init__(self) -> None:
        self._found: dict[str, MlflowClient | UserError] = {}

    def connect(self, store: Store) -> "MlflowClient":
        """The client of `store`.

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


def sync(run_id: str | None = None) -> None:
    """Send what is unsent, of the run `run_id` or of all, each to its own store.

    Raises:
        UserError: there is no such run, or a store does not take something; what is unsent stays where it is.

    """
    store, stores = find_store(), Stores()
    folders = run_folders(store.home) if run_id is None else [_folder(run_id, store)]
    waiting = [folder for folder in folders if has_unsent(folder)]
    if not waiting:
        print("nothing waits to be sent")
    failures = []
    for folder in waiting:
        try:
            _sync_run(folder, store, stores)
        except BusyError as busy:
            note(f"{busy}: skipped")
        except UserError as error:
            failures.append(str(error))
    if failures:
        raise UserError("; ".join(dict.fromkeys(failures)))


def _folder(run_id: str, store: Store) -> Path:
    if (found := local_folder(run_id)) is None:
        raise UsageError(f"no folder in {store.home / 'runs'} is that of one run {run_id!r}")
    return found


def _sync_run(folder: Path, current: Store, stores: Stores) -> None:
    with FolderLock(folder):
        record = read_record(folder) or Record(folder.name, "", uri=recorded_uri(current))
        store = record.store(current)
        client = stores.connect(store)
        folder = adopt(client, store, folder, record)
        tally: Counter[str] = Counter()
        try:
            for spool in spools(folder):
                _sync_spool(MLflowWriter(client, record.id, spool), store, tally)
        finally:
            print(f"run {record.id}: {_said(tally, record)} to {store.name}", flush=True)
        if Journal(folder).status() == "FINISHED" or _is_bare(folder):
            remove_if_done(folder)


def _sync_spool(delivery: MLflowWriter, store: Store, tally: Counter[str]) -> None:
    spool = delivery.spool
    try:
        if spool.name == MAIN:
            deliver_now(delivery, store.name)
            return
        with FolderLock(spool.folder, spool.name) as lock:
            deliver_now(delivery, store.name)
            spool.remove()
            lock.path.unlink(missing_ok=True)
    except BusyError as busy:  # somebody who measures the run sends it himself
        note(f"{busy}: skipped")
    finally:
        tally += delivery.tally


def _said(tally: Counter[str], record: Record) -> str:
    counts = [(tally[kind], what) for kind, what in KINDS.items() if tally[kind]]
    sent = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts)
    born = f" (offline it was {record.offline_id})" if record.offline_id else ""
    return f"{sent or 'nothing new'}{born}"


def _is_bare(folder: Path) -> bool:
    """Whether nothing is left but what was written to know the run by."""
    return {path.name for path in folder.iterdir()} <= {RECORD, HEARTBEAT, ".lock"}
