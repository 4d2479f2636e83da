"""Find a run by its id, the beginning of its id, its key or `last`; its folder, status and artifacts."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.errors import UsageError, UserError, one_line
from lit_mnist.tracking.folder import Record, has_unsent, is_at_work, read_record, records, run_folders
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.liveness import State, find_liveness
from lit_mnist.tracking.queries.reader import TRIAL, ClientReader, Reader
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.store import Store, connect, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

LATEST = "last"
"""The word that stands for the newest run instead of an id; for `fit --resume`, the newest unfinished run."""
KEY = "key"
"""The tag with the name by which `fit --key` finds a run."""
UNFINISHED = ("FAILED", "KILLED")
MOST_NAMED = 4
"""Number of runs that are named in the error about an ambiguous id."""


def resolve_run_id(store: Store, reader: Reader, text: str) -> str:
    """Return the full id of the run in the store that `text` names.

    Args:
        store: The store to search.
        reader: A reader of this store.
        text: An id or its beginning (also of the id that the run had while it was offline), or `last`.

    Raises:
        UsageError: there is no such run, or more than one.

    """
    if text == LATEST:
        found = [run.id for run in reader.list_runs("start", 1)]
    elif re.fullmatch("[0-9a-f]+", text):  # other text is not an id, and may contain wildcards of the search
        found = reader.ids_beginning(text, MOST_NAMED + 1)
    else:
        found = []
    if len(found) == 1:
        return found[0]
    if found:
        named = [f"{run.id[: len(text) + 4]} ({run.name})" for run in reader.runs(found[:MOST_NAMED])]
        others = ["…"] if len(found) > MOST_NAMED else []
        raise UsageError(
            f"more than one run begins with {text!r} in {store.name}: {', '.join([*named, *others])};"
            " give more of the id"
        )
    # Not in the store, but it may be an offline run.
    folder = local_folder(text, store.home)
    record = read_record(folder) if folder is not None else None
    if record is not None and record.offline:
        raise UsageError(f"run {record.id} is offline: `lit-mnist sync` sends it to {store.name}")
    raise UsageError(f"no run {text!r} in {store.name}; `lit-mnist runs` lists the runs")


def find_run(client: "MlflowClient", store: Store, text: str) -> "MlflowRun":
    """Return the run that `text` names, see `resolve_run_id`.

    Raises:
        UsageError: there is no such run, or more than one.

    """
    return client.get_run(resolve_run_id(store, ClientReader(client), text))


def local_folder(text: str, home: Path | None = None) -> Path | None:
    """Return the folder on this machine of the run that `text` names, without using the store.

    Args:
        text: An id or its beginning (also of the id that the run had while it was offline), or `last`.
        home: A project's `mlruns` folder; None for this project's.

    Returns:
        None if no folder fits, or more than one.

    """
    if not text:
        return None
    home = home or find_store().home
    if text == LATEST:
        newest = max(records(home), key=lambda item: item[1].start_time, default=None)
        return None if newest is None else newest[0]
    # By the folder's name first, which is the run's current id and needs no reading of files.
    found = [path for path in run_folders(home) if path.name.startswith(text)]
    # The former offline id is in the record.
    found = found or [path for path, record in records(home) if record.is_called(text)]
    return found[0] if len(found) == 1 else None


def find_key(key: str, offline: bool = False) -> str | None:
    """Return the id of the newest run that was started with `fit --key KEY`; None if there is none.

    Args:
        key: The key, which must not contain quotation marks.
        offline: Use only the runs' folders here and not the store.

    Raises:
        UserError: the store cannot be opened.

    """
    store = find_store()
    # The folders come first, since an offline run is not in a store yet.
    here = [record for _, record in records(store.home) if record.key == key]
    if here:
        return max(here, key=lambda record: record.start_time).id
    if offline:
        return None
    found = next(search_runs(connect(store), f"tags.`{KEY}` = '{key}'", limit=1), None)
    return None if found is None else str(found.info.run_id)


def find_unfinished(offline: bool = False) -> str:
    """Return the id of the newest run of `fit` that has a folder here, did not finish, and whose process is dead.

    The runs of a sweep's trials are left out: `lit-mnist sweep` resumes them.

    Args:
        offline: Use only the runs' folders here and not the store.

    Raises:
        UserError: there is none, its store cannot be opened, or a newer one may be alive on another host.

    """
    store = find_store()
    # Newest first, since the user may have abandoned older unfinished runs.
    for path, record in sorted(records(store.home), key=lambda item: -item[1].start_time):
        # Only runs of `fit` have a configuration to resume from. The command is checked first, since searching the
        # journal for the configuration takes longer.
        made_by_fit = record.argv[:1] == ["fit"] or any(
            entry.get("path") == "config.yaml" for _, entry in Journal(path).entries() if entry["kind"] == "text"
        )
        if not made_by_fit or record.argv[:1] == ["sweep"] or is_at_work(path):
            continue
        status, tags = _status_and_tags(path, record, store, offline)
        # Trials have other first arguments too, if they were resumed by `fit --resume ID` or run from Python.
        if TRIAL in (tags or {}):
            continue
        if status in UNFINISHED:
            return record.id
        # A RUNNING run may be taken over only if its process is known to be dead.
        if status == "RUNNING":
            liveness = find_liveness(path, record, tags)
            if liveness.state is State.DEAD:
                return record.id
            if liveness.state is not State.ALIVE:
                raise UserError(f"run {record.id} {liveness.reason}; once it is dead, take `--resume {record.id}`")
    raise UserError("there is no unfinished run")


def _status_and_tags(
    folder: Path, record: Record, store: Store, offline: bool
) -> tuple[str | None, Mapping[str, str] | None]:
    """Return the run's status (None if it is not in the store) and its tags (None if the store was not used)."""
    # Unsent entries take precedence, since the store's status is older.
    if offline or record.offline or has_unsent(folder):
        return Journal(folder).status() or "RUNNING", None
    from mlflow.exceptions import MlflowException

    try:
        run = connect(record.store(store)).get_run(record.id)
    except MlflowException:
        return None, None
    return (None if run.info.lifecycle_stage == "deleted" else run.info.status), run.data.tags


@dataclass(frozen=True)
class FoundRun:
    """An existing run; found once and then passed on."""

    id: str
    folder: Path
    """Its folder on this machine, which need not exist."""
    store: Store
    """The store it belongs to."""
    record: Record | None
    """The record in its folder; None if it has no folder here."""
    status: str
    """The status from its journal if that is newer than the store, otherwise from the store."""


def resolve_run(text: str, offline: bool = False) -> FoundRun:
    """Find the run that `text` names, on this machine or in the store.

    Args:
        text: See `resolve_run_id`.
        offline: Do not use the store; the run must have a folder here.

    Raises:
        UserError: the store cannot be opened, or there is no such run, or more than one.

    """
    # This machine first: its folder is newer than the store, and needs no connection.
    current = find_store()
    folder = local_folder(text, current.home)
    record = read_record(folder) if folder is not None else None
    # Without the store, because the run is not in it, or because it must not be used.
    if record is not None and folder is not None and (offline or record.offline):
        return FoundRun(record.id, folder, record.store(current), record, Journal(folder).status() or "RUNNING")
    if offline:
        raise UsageError(f"no folder of a run {text!r} in {current.home / 'runs'}: it cannot go on offline")
    store = record.store(current) if record else current
    info = find_run(connect(store), store, record.id if record else text).info
    folder = store.run_folder(info.run_id)
    # Unsent entries are newer than the store.
    status = Journal(folder).status() or "RUNNING" if has_unsent(folder) else info.status
    return FoundRun(info.run_id, folder, store, record, status)


@contextmanager
def fetched(client: "MlflowClient", run_id: str, path: str) -> Iterator[Path]:
    """Download an artifact of a run to a temporary file, which is removed afterwards.

    MLflow itself would leave its copy in the temporary folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(client.download_artifacts(run_id, path, folder))


def fetch_folder(run: FoundRun, files: Sequence[str], folders: Sequence[str]) -> None:
    """Create the folder of a run from the run's artifacts in its store.

    Args:
        run: The run, which has no complete folder here.
        files: Artifacts at the top level to fetch, if the run has them.
        folders: Folders of artifacts to fetch, if the run has them.

    Raises:
        UserError: the artifacts cannot be fetched.

    """
    client = connect(run.store)
    # Renamed when complete, since an incomplete folder could be used for resuming.
    temporary = run.folder.with_name(f".{run.id}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        # List the artifacts first, since the exception for a missing artifact differs between stores.
        there = {item.path for item in client.list_artifacts(run.id)}
        for name in there & {*files, *folders}:
            client.download_artifacts(run.id, name, str(temporary))
        if run.folder.exists():  # with files of another program, such as a Trainer's own checkpoints
            shutil.copytree(temporary, run.folder, dirs_exist_ok=True)
        else:
            temporary.rename(run.folder)
    except Exception as error:  # each kind of artifact store has its own exceptions
        raise UserError(f"cannot fetch the artifacts of run {run.id}: {one_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
