"""Find a run by what the user calls it, and what the run has left: its folder, status and artifacts."""

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
"""What the user may write instead of an id: the newest run; for `fit --resume`, the newest unfinished one."""
KEY = "key"
"""The tag with the name that `fit --key` finds a run by."""
UNFINISHED = ("FAILED", "KILLED")
MOST_NAMED = 4
"""Runs that the error about an ambiguous id names."""


def resolve_run_id(store: Store, reader: Reader, text: str) -> str:
    """Return the full id of the run in the store that `text` names.

    Args:
        store: Where to look.
        reader: Of this store.
        text: An id or the beginning of one, also of the id that the run had while it was offline; or `last`.

    Raises:
        UsageError: there is no such run, or more than one.

    """
    if text == LATEST:
        found = [run.id for run in reader.list_runs("start", 1)]
    elif re.fullmatch("[0-9a-f]+", text):  # anything else is no id, and may hold wildcards of the search
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
    # Not in the store: perhaps it was never sent.
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
    """Return the folder on this machine of the run that `text` names, without asking the store.

    Args:
        text: An id or its beginning, also of the id that the run had while offline; or `last`.
        home: A project's `mlruns` folder; None for that of this project.

    Returns:
        None if no folder fits, or more than one.

    """
    if not text:
        return None
    home = home or find_store().home
    if text == LATEST:
        newest = max(records(home), key=lambda item: item[1].start_time, default=None)
        return None if newest is None else newest[0]
    # By name first, which reads no file.
    found = [path for path in run_folders(home) if path.name.startswith(text)]
    # A folder has the run's current id as its name; the id that the run had while offline is in its record.
    found = found or [path for path, record in records(home) if record.is_called(text)]
    return found[0] if len(found) == 1 else None


def find_key(key: str, offline: bool = False) -> str | None:
    """Return the id of the newest run that was started with `fit --key KEY`; None if there is none.

    Args:
        key: The key, which must not contain quotation marks.
        offline: Do not ask the store; go by the runs' folders here.

    Raises:
        UserError: the store cannot be opened.

    """
    store = find_store()
    # The folders come first: a run that was offline is in no store yet.
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
        offline: Do not ask the store; go by what the folders say.

    Raises:
        UserError: there is none, its store cannot be opened, or a newer one may be alive on another host.

    """
    store = find_store()
    # Newest first: an older unfinished run may be one that the user has given up.
    for path, record in sorted(records(store.home), key=lambda item: -item[1].start_time):
        # Only `fit` leaves a configuration to resume from; the study's own run, for one, has none.
        # The command first: of a journal every line up to the configuration has to be read.
        made_by_fit = record.argv[:1] == ["fit"] or any(
            entry.get("path") == "config.yaml" for _, entry in Journal(path).entries() if entry["kind"] == "text"
        )
        if not made_by_fit or record.argv[:1] == ["sweep"] or is_at_work(path):
            continue
        status, tags = _status_and_tags(path, record, store, offline)
        # The first argument is another one if a trial was resumed by `fit --resume ID`, or run from Python.
        if TRIAL in (tags or {}):
            continue
        if status in UNFINISHED:
            return record.id
        # Only a proof of death lets another process take it.
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
    """Return the run's status, None if it is not in the store, and its tags, None if no store was asked."""
    # What was not sent decides: the store's status is older.
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
    """A run that exists: found once, then passed on."""

    id: str
    folder: Path
    """Its folder on this machine, which need not exist."""
    store: Store
    """The store it belongs to."""
    record: Record | None
    """What its folder says of it; None if it has no folder here."""
    status: str
    """By its journal if that is ahead of the store, else by the store."""


def resolve_run(text: str, offline: bool = False) -> FoundRun:
    """Find the run that `text` names, on this machine or in the store.

    Args:
        text: See `resolve_run_id`.
        offline: Do not ask the store: the run has a folder here.

    Raises:
        UserError: the store cannot be opened, or there is no such run, or more than one.

    """
    # This machine first: its folder is ahead of the store, and needs no connection.
    current = find_store()
    folder = local_folder(text, current.home)
    record = read_record(folder) if folder is not None else None
    # Without the store, because it has nothing to say, or must not be asked.
    if record is not None and folder is not None and (offline or record.offline):
        return FoundRun(record.id, folder, record.store(current), record, Journal(folder).status() or "RUNNING")
    if offline:
        raise UsageError(f"no folder of a run {text!r} in {current.home / 'runs'}: it cannot go on offline")
    store = record.store(current) if record else current
    info = find_run(connect(store), store, record.id if record else text).info
    folder = store.run_folder(info.run_id)
    # What is unsent is newer than what the store says.
    status = Journal(folder).status() or "RUNNING" if has_unsent(folder) else info.status
    return FoundRun(info.run_id, folder, store, record, status)


@contextmanager
def fetched(client: "MlflowClient", run_id: str, path: str) -> Iterator[Path]:
    """Download one of a run's artifacts and yield it as a file, which is removed afterwards.

    MLflow itself would leave its copy in the temporary folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(client.download_artifacts(run_id, path, folder))


def fetch_folder(run: FoundRun, files: Sequence[str], folders: Sequence[str]) -> None:
    """Make the folder of a run that has none here from the run's artifacts in its store.

    Args:
        run: The run.
        files: Artifacts to fetch, at the top level.
        folders: Folders of artifacts to fetch. Of both, those that the run does not have are left out.

    Raises:
        UserError: the artifacts cannot be fetched.

    """
    client = connect(run.store)
    # All or nothing, by renaming: a folder with half of the files would be taken for a run to resume.
    temporary = run.folder.with_name(f".{run.id}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        # Asked first: downloading an artifact that is not there is an error of its own kind in each store.
        there = {item.path for item in client.list_artifacts(run.id)}
        for name in there & {*files, *folders}:
            client.download_artifacts(run.id, name, str(temporary))
        if run.folder.exists():  # what another program has left there, such as a Trainer's own checkpoints
            shutil.copytree(temporary, run.folder, dirs_exist_ok=True)
        else:
            temporary.rename(run.folder)
    except Exception as error:  # each kind of artifact store raises errors of its own
        raise UserError(f"cannot fetch the artifacts of run {run.id}: {one_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
