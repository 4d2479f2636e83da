"""Which run is meant."""

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
from lit_mnist.tracking.folder import OFFLINE_ID, Record, has_unsent, is_at_work, read_record, run_folders
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.liveness import State, find_liveness
from lit_mnist.tracking.store import Store, connect, find_store, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

UNFINISHED = ("FAILED", "KILLED")


def find_run(client: "MlflowClient", store: Store, run_id: str) -> "MlflowRun":
    """The run whose id is, was while offline, or uniquely begins with `run_id`.

    Raises:
        UserError: there is no such run, or more than one.

    """
    found: Sequence[MlflowRun] = []
    if re.fullmatch("[0-9a-f]+", run_id):
        experiments = [e.experiment_id for e in client.search_experiments()]
        for what in ("attributes.run_id", f"tags.{OFFLINE_ID}"):
            found = found or client.search_runs(experiments, f"{what} LIKE '{run_id}%'", max_results=2)
    if len(found) == 1:
        return found[0]
    folder = local_folder(run_id)
    if not found and folder and (record := read_record(folder)) and record.offline:
        raise UsageError(f"run {record.id} is offline: `lit-mnist sync` sends it to {store.name}")
    what = "more than one run begins with" if found else "no run"
    raise UsageError(f"{what} {run_id!r} in {store.name}; `lit-mnist runs` lists the runs")


def local_folder(run_id: str) -> Path | None:
    """The folder of the run whose id is, was while offline, or uniquely begins with `run_id`; None without one."""
    return folders.local_folder(run_id, find_store().home)


def find_unfinished(offline: bool = False) -> str:
    """The id of the newest run whose folder is here, whose fit did not end, and whose process is dead.

    Args:
        offline: Ask no store, and go by what the folders say.

    Raises:
        UserError: there is none, its store cannot be opened, or a newer one may be alive on another host.

    """
    store = find_store()
    found = [(path, record) for path in run_folders(store.home) if (record := read_record(path)) is not None]
    for path, record in sorted(found, key=lambda item: -item[1].start_time):
        if not _is_fit(path, record) or is_at_work(path):
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


def _is_fit(folder: Path, record: Record) -> bool:
    """Whether `fit` made the run, which then has a configuration."""
    if record.argv[:1] == ["fit"]:
        return True
    return any(e.get("path") == "config.yaml" for _, e in Journal(folder).entries() if e["kind"] == "text")


def status_of(folder: Path, offline: bool = False) -> str:
    """The status of a run: its spool's word while the store has not heard all of that, else the store's.

    Args:
        folder: The run's folder.
        offline: Ask no store.

    Raises:
        UserError: the store cannot be opened, or does not know the run.

    """
    store, record = find_store(), read_record(folder)
    if offline or (record and record.offline) or has_unsent(folder):
        return Journal(folder).status() or "RUNNING"
    store = record.store(store) if record else store
    return str(find_run(connect(store), store, folder.name).info.status)


@contextmanager
def fetched(client: "MlflowClient", run_id: str, path: str) -> Iterator[Path]:
    """One of a run's artifacts as a file, as long as it is needed; MLflow alone would leave a copy behind."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(client.download_artifacts(run_id, path, folder))


def fetch_folder(run_id: str, files: Sequence[str], folders: Sequence[str]) -> Path:
    """Make the folder of a run that has none here, from what the run has left in the store; returns its path.

    Args:
        run_id: The run's id, or its beginning.
        files: The artifacts that are wanted, at the top.
        folders: And folders of artifacts. Of both, what the run does not have is left out.

    Raises:
        UserError: there is no such run, or it cannot be fetched.

    """
    store = find_store()
    client = connect(store)
    found = find_run(client, store, run_id).info.run_id
    target = store.run_folder(found)
    # All or nothing: half a folder would look like a run's own.
    temporary = target.with_name(f".{found}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        there = {item.path for item in client.list_artifacts(found)}
        for name in there & {*files, *folders}:
            client.download_artifacts(found, name, str(temporary))
        temporary.rename(target)
    except Exception as error:  # each kind of artifact store has its own
        raise UserError(f"cannot fetch the artifacts of run {found}: {one_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _status_and_tags(
    folder: Path, record: Record, store: Store, offline: bool
) -> tuple[str | None, Mapping[str, str] | None]:
    """The run's status, None where the store does not have it (any more); its tags, if a store was asked."""
    if offline or record.offline or has_unsent(folder):
        return Journal(folder).status() or "RUNNING", None
    from mlflow.exceptions import MlflowException

    try:
        run = connect(record.store(store)).get_run(record.id)
    except MlflowException:
        return None, None
    return (None if run.info.lifecycle_stage == "deleted" else run.info.status), run.data.tags
