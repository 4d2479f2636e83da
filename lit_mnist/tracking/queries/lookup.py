"""Find a run by what the user calls it, and what the run has left: its folder, status and artifacts."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.errors import UsageError, UserError
from lit_mnist.tracking import folder as folders
from lit_mnist.tracking.folder import Record, has_unsent, is_at_work, read_record, run_folders
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.liveness import State, find_liveness
from lit_mnist.tracking.queries.reader import ClientReader, Reader
from lit_mnist.tracking.store import Store, connect, find_store, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

LATEST = "last"
"""What the user may write instead of an id: the newest run; for `fit --resume`, the newest unfinished one."""
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
    else:
        found = reader.ids_beginning(text, MOST_NAMED + 1) if re.fullmatch("[0-9a-f]+", text) else []
    if len(found) == 1:
        return found[0]
    if found:
        named = [f"{run.id[: len(text) + 4]} ({run.name})" for run in reader.runs(found[:MOST_NAMED])]
        others = ["…"] if len(found) > MOST_NAMED else []
        raise UsageError(
            f"more than one run begins with {text!r} in {store.name}: {', '.join([*named, *others])};"
            " give more of the id"
        )
    folder = folders.local_folder(text, store.home)
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


def local_folder(text: str) -> Path | None:
    """Return the folder on this machine of the run that `text` names, without asking the store.

    Args:
        text: An id or its beginning, also of the id that the run had while offline; or `last`.

    Returns:
        None if no folder fits, or more than one.

    """
    home = find_store().home
    if text == LATEST:
        records = [record for path in run_folders(home) if (record := read_record(path)) is not None]
        text = max(records, key=lambda record: record.start_time).id if records else ""
    return folders.local_folder(text, home)


def find_unfinished(offline: bool = False) -> str:
    """Return the id of the newest run of `fit` that has a folder here, did not finish, and whose process is dead.

    Args:
        offline: Do not ask the store; go by what the folders say.

    Raises:
        UserError: there is none, its store cannot be opened, or a newer one may be alive on another host.

    """
    store = find_store()
    found = [(path, record) for path in run_folders(store.home) if (record := read_record(path)) is not None]
    for path, record in sorted(found, key=lambda item: -item[1].start_time):
        # Only `fit` leaves a configuration to resume from; the study's own run, for one, has none.
        made_by_fit = record.argv[:1] == ["fit"] or any(
            entry.get("path") == "config.yaml" for _, entry in Journal(path).entries() if entry["kind"] == "text"
        )
        if not made_by_fit or is_at_work(path):
            continue
        status, tags = _status_and_tags(path, record, store, offline)
        if status in UNFINISHED:
            return record.id
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
    if offline or record.offline or has_unsent(folder):
        return Journal(folder).status() or "RUNNING", None
    from mlflow.exceptions import MlflowException

    try:
        run = connect(record.store(store)).get_run(record.id)
    except MlflowException:
        return None, None
    return (None if run.info.lifecycle_stage == "deleted" else run.info.status), run.data.tags


def status_of(folder: Path, offline: bool = False) -> str:
    """Return the status of the run in `folder`: by its journal if that is ahead of the store, else by the store.

    Args:
        folder: The run's folder.
        offline: Do not ask the store.

    Raises:
        UserError: the store cannot be opened, or does not have the run.

    """
    store, record = find_store(), read_record(folder)
    if offline or (record and record.offline) or has_unsent(folder):
        return Journal(folder).status() or "RUNNING"
    store = record.store(store) if record else store
    return str(find_run(connect(store), store, folder.name).info.status)


@contextmanager
def fetched(client: "MlflowClient", run_id: str, path: str) -> Iterator[Path]:
    """Download one of a run's artifacts and yield it as a file, which is removed afterwards.

    MLflow itself would leave its copy in the temporary folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(client.download_artifacts(run_id, path, folder))


def fetch_folder(run_id: str, files: Sequence[str], folders: Sequence[str]) -> Path:
    """Make the folder of a run that has none here from the run's artifacts in the store; return its path.

    Args:
        run_id: The run's id, or its beginning.
        files: Artifacts to fetch, at the top level.
        folders: Folders of artifacts to fetch. Of both, those that the run does not have are left out.

    Raises:
        UserError: there is no such run, or its artifacts cannot be fetched.

    """
    store = find_store()
    client = connect(store)
    found = find_run(client, store, run_id).info.run_id
    target = store.run_folder(found)
    # All or nothing, by renaming: a folder with half of the files would be taken for a run to resume.
    temporary = target.with_name(f".{found}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        there = {item.path for item in client.list_artifacts(found)}
        for name in there & {*files, *folders}:
            client.download_artifacts(found, name, str(temporary))
        temporary.rename(target)
    except Exception as error:  # each kind of artifact store raises errors of its own
        raise UserError(f"cannot fetch the artifacts of run {found}: {one_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
