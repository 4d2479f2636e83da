"""Open a run: a new one, one to resume, or one to add to. One id, one folder, one status at a time."""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.errors import Interrupted, UserError
from lit_mnist.redaction import redact
from lit_mnist.terminal import note, warn
from lit_mnist.tracking.active_run import Run
from lit_mnist.tracking.folder import (
    OFFLINE_ID,
    RESERVED_BYTES,
    BusyError,
    FolderLock,
    Record,
    ReservedSpace,
    read_record,
    remove_if_done,
)
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter
from lit_mnist.tracking.journal.points import stored_points, tagged_rewinds
from lit_mnist.tracking.journal.system_metrics import PREFIX, SystemMetrics
from lit_mnist.tracking.journal.uploader import PATIENCE, Uploader
from lit_mnist.tracking.liveness import Liveness, State, find_liveness, heartbeat_tag
from lit_mnist.tracking.mlflow_private import MAX_PARAM_LENGTH
from lit_mnist.tracking.process import process_tags, this_host
from lit_mnist.tracking.provenance import source_tags
from lit_mnist.tracking.queries.lookup import KEY, FoundRun, find_run, resolve_run
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.store import Store, connect, experiment_id, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Run", "clean_folder", "find_run", "open_run", "register_offline_run", "resume_run"]


@contextmanager
def open_run(
    experiment: str,
    name: str | None = None,
    run_id: str | None = None,
    system_metrics: bool | None = True,
    *,
    resume: bool = False,
    offline: bool = False,
    leased: bool = False,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Open a new run, or the run `run_id`: RUNNING inside, and FINISHED, FAILED or KILLED afterwards.

    A store that goes away meanwhile stops nothing: what it has not accepted stays in the run's folder.

    Args:
        experiment: MLflow experiment of a new run.
        name: The run's name in the UI; without it MLflow makes one up.
        run_id: A run to read and to add to; its status is not changed.
        system_metrics: Sample the machine's load; None for runs of more than a minute only.
        resume: Continue the fit of `run_id`: it is RUNNING again, and no step is logged twice.
        offline: Use no store; everything waits in the run's folder for `lit-mnist sync`.
        leased: The caller has proof that no other host works on the run to resume (a sweep's lease), so heartbeats
            are not considered.
        tags: Tags of a new run, which never exists without them.

    Raises:
        UserError: the store cannot be opened, the run is not in it, or another process works on it.

    """
    # Three ways to open a run; only a visit leaves the run's status alone.
    if run_id is None:
        opened = _create_run(experiment, name, system_metrics, offline, tags or {})
    elif resume:
        opened = resume_run(resolve_run(run_id, offline), system_metrics, offline=offline, leased=leased)
    else:
        opened = _visit_run(run_id)
    with opened as run:
        yield run


def clean_folder(run: Run) -> None:
    """Remove the folder of a run that is over, unless it holds something that the store has not accepted."""
    remove_if_done(run.folder)


def register_offline_run(client: "MlflowClient", store: Store, folder: Path, record: Record) -> Path:
    """Register a run that was offline in the store, and rename its folder to its new id.

    Does nothing for a run that is registered. After a crash at any moment the next call completes the work.

    Returns:
        The folder's new path.

    """
    if record.offline:
        # An earlier call may have been killed between creating the run and writing its id down.
        # Create, write the id down, rename: each step finds what a killed call has done before it.
        query = f"tags.{OFFLINE_ID} = '{record.id}'"
        # Also one that was deleted meanwhile: a second run for the same folder would bring it back.
        run = next(search_runs(client, query, limit=1, deleted=True), None) or client.create_run(
            experiment_id(client, store, record.experiment),
            start_time=record.start_time,
            tags={OFFLINE_ID: record.id},
            run_name=record.name,
        )  # fmt: skip
        record.offline_id, record.id, record.offline = record.id, run.info.run_id, False
        record.uri, record.artifact_uri = store.portable_uri, run.info.artifact_uri
        record.write(folder)
    # The folder has the run's id as its name; for a registered run it mostly has it already.
    target = store.run_folder(record.id)
    if folder != target:
        folder.rename(target)
    return target


@contextmanager
def _create_run(
    experiment: str, name: str | None, system_metrics: bool | None, offline: bool, tags: Mapping[str, str]
) -> Iterator[Run]:
    store = find_store()
    client = None
    # An id of the kind that MLflow gives, until the store gives another one.
    if offline:
        record = Record(uuid.uuid4().hex, experiment, name, offline=True, key=tags.get(KEY))
    else:
        client = connect(store)
        store.home.mkdir(parents=True, exist_ok=True)
        # All in the request that creates the run: a crash after it leaves no run without its process, key or
        # stage.
        all_tags = {**source_tags(), **heartbeat_tag(), **tags}
        info = client.create_run(experiment_id(client, store, experiment), run_name=name, tags=all_tags).info
        record = Record(
            info.run_id, experiment, info.run_name, store.portable_uri,
            artifact_uri=info.artifact_uri, start_time=info.start_time, key=tags.get(KEY),
        )  # fmt: skip
    # The lock comes first: from here on no other process may take the run for a dead one.
    folder = store.run_folder(record.id)
    with ExitStack() as stack:
        try:
            stack.enter_context(FolderLock(folder))
            record.write(folder)
            journal = Journal(folder, on_full=ReservedSpace(folder).free)
        except OSError:
            if client is not None:
                # Without a folder the run has no journal: nobody would ever set its status.
                with contextlib.suppress(Exception):  # the first error is the one to report
                    client.set_terminated(record.id, "FAILED")
            raise
        if offline:
            journal.append({"kind": "tags", "values": {**source_tags(), **tags}})
        yield stack.enter_context(_work_on(store, record, client, journal, system_metrics))


@contextmanager
def resume_run(
    found: FoundRun, system_metrics: bool | None = True, *, offline: bool = False, leased: bool = False
) -> Iterator[Run]:
    """Open a run that was found, to continue its fit; for the arguments and errors see `open_run`."""
    record, folder, store, client = found.record, found.folder, found.store, None
    before: Liveness | None = None  # of the process that worked on the run, if the run is RUNNING
    if offline:
        if Journal(folder).status() in (None, "RUNNING"):
            before = find_liveness(folder, record, None)
    else:
        client = connect(store)
        if record is None or not record.offline:
            # Read again, because another process may have taken the run over since it was found.
            stored = client.get_run(found.id)
            if stored.info.status == "RUNNING":
                before = find_liveness(folder if folder.exists() else None, record, stored.data.tags)
        record = record or _record_from_store(client, store, found.id)
    assert record is not None, "a run that is resumed offline has a folder"
    # A sweep's lease is better proof than a heartbeat.
    if before is not None and (before.state is State.ALIVE or (before.state is State.PERHAPS and not leased)):
        raise BusyError(f"run {record.id} {before.reason}")
    # The lock decides: two processes may both have found the run dead.
    with FolderLock(folder):
        if before is not None and before.host != this_host():
            note(f"run {record.id} was RUNNING on {before.host}: taking it over")
        if client is not None:
            record = read_record(folder) or record  # `lit-mnist sync` may have changed it until now
            folder = register_offline_run(client, store, folder, record)
        journal = _mark_running(client, record, folder)
        with _work_on(store, record, client, journal, system_metrics) as run:
            yield run


def _record_from_store(client: "MlflowClient", store: Store, run_id: str) -> Record:
    """The record of a run that has no folder here."""
    run = client.get_run(run_id)
    info, tags = run.info, run.data.tags
    return Record(
        info.run_id,
        client.get_experiment(info.experiment_id).name,
        info.run_name,
        store.portable_uri,
        artifact_uri=info.artifact_uri,
        start_time=info.start_time,
        host=tags.get("host", ""),
        process=tags.get("process", ""),
        boot=tags.get("boot", ""),
        job="",  # only the tags are asked about a run without a folder
        key=tags.get(KEY),
    )


def _mark_running(client: "MlflowClient | None", record: Record, folder: Path) -> Journal:
    """Make this the process that works on a run that existed before, and return the run's journal."""
    now = Record(record.id, record.experiment)
    for name in ("argv", "host", "process", "boot", "job"):
        setattr(record, name, getattr(now, name))
    journal = Journal(folder, on_full=ReservedSpace(folder).free)
    if client is not None:
        if not journal.path.exists():
            data = client.get_run(record.id).data
            rewinds = tagged_rewinds(data.tags)
            curves = (stored_points(client, record.id, name, rewinds) for name in data.metrics)
            # This folder knows nothing of the run yet. Without its points, the steps after the checkpoint would be
            # logged again, and a rewind could not tell what it replaces.
            journal.seed((point for curve in curves for point in curve), rewinds)
        # Set at once, because `runs --reap` looks at these tags; and again in the journal, where older values may
        # still wait to be sent.
        for tag, value in {**process_tags(), **heartbeat_tag()}.items():
            client.set_tag(record.id, tag, value)
        # Lightning's own logger leaves a resumed run FINISHED while it trains (PL#6205, PL#12291).
        client.update_run(record.id, "RUNNING")
    # The record before the journal: whoever reads RUNNING there must find the process that says so.
    record.write(folder)
    journal.append({"kind": "tags", "values": process_tags()})
    journal.append({"kind": "status", "status": "RUNNING", "end_time": None})
    return journal


@contextmanager
def _work_on(
    store: Store, record: Record, client: "MlflowClient | None", journal: Journal, system_metrics: bool | None
) -> Iterator[Run]:
    """Yield the run, with its uploader at work, and set its status at the end."""
    # What is logged already, so that a resumed run neither repeats a step nor starts its load's curve at 0.
    steps = journal.last_steps()
    last = max((step for name, step in steps.items() if name.startswith(PREFIX)), default=-1)
    system = None
    if system_metrics is not False:
        # A run of some seconds, such as a test, would only get a chart with one point.
        first = 60.0 if system_metrics is None else 2.0
        system = SystemMetrics(first=first, last_step=last, short_runs=bool(system_metrics))
    # Without a client everything stays in the journal.
    writer = MLflowWriter(client, record.id, journal) if client else None
    uploader = Uploader(journal, writer, store.name, system, heartbeat=True)
    earliest = max((rewind.time for rewind in journal.rewinds()), default=0)
    run = Run(store, record.id, record.experiment, journal, uploader, record.artifact_uri, client, steps, earliest)
    # Until the block below has ended well: also for an exception that is not caught here, such as SystemExit.
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    # KILLED is never set by Lightning's logger: a signal would leave FAILED, and SIGKILL leaves RUNNING for
    # `--reap`.
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except Exception as error:
        text = redact(f"{type(error).__name__}: {error}")[:MAX_PARAM_LENGTH]
        _append_reserved(run, {"kind": "tags", "values": {"error": text}})
        raise
    finally:
        # Tasks may still log: the status has to come after all of it.
        uploader.flush()
        # The status is the last entry, so that a run that is FINISHED in the store is complete there.
        end_time = time.time_ns() // 1_000_000
        _append_reserved(run, {"kind": "status", "status": status, "end_time": end_time})
        if not _close(run) and client is not None:
            with contextlib.suppress(Exception):
                if journal.full or shutil.disk_usage(run.folder).free < RESERVED_BYTES:
                    # The store's database may lack room on the same disk: give it what was reserved.
                    journal.on_full()
                    client.set_terminated(run.id, status)


def _append_reserved(run: Run, entry: dict[str, object]) -> None:
    for _ in range(2):  # on a full disk the first attempt makes room for the second
        with contextlib.suppress(UserError):
            run.journal.append(entry, reserved=True)
            return


def _close(run: Run) -> bool:
    """End the uploader and report what is left unsent; returns True if everything was sent."""
    # PATIENCE seconds without progress end the wait for a store that is away.
    sent = run.uploader.close(PATIENCE)
    run.journal.close()
    if run.mlflow is None:
        note(f"run {run.id} is offline in {run.folder}: `lit-mnist sync` sends it to a tracking store")
    elif not sent:
        where = f"{run.journal.waiting()} entries of run {run.id} wait in {run.journal.path}"
        warn(f"the tracking store {run.store.name} has not taken everything: {where}; `lit-mnist sync` sends them")
    return sent


@contextmanager
def _visit_run(run_id: str) -> Iterator[Run]:
    """Open an existing run to measure it, with a journal of its own, whether or not its fit is at work."""
    store = find_store()
    client = connect(store)
    record = _record_from_store(client, store, find_run(client, store, run_id).info.run_id)
    folder = store.run_folder(record.id)
    existed = folder.exists()
    # A name of its own: several processes, or threads of one, may measure the same run at once.
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    with FolderLock(folder, name) as lock:
        journal = Journal(folder, name)
        uploader = Uploader(journal, MLflowWriter(client, record.id, journal), store.name)
        run = Run(store, record.id, record.experiment, journal, uploader, record.artifact_uri, client)
        try:
            yield run
        finally:
            uploader.flush()
            if _close(run):
                journal.remove()
            elif read_record(folder) is None:
                record.write(folder)  # `lit-mnist sync` finds the store in it
            lock.path.unlink(missing_ok=True)
    if not existed:
        with contextlib.suppress(OSError):  # not empty: another visitor works in it, or something is unsent
            folder.rmdir()
