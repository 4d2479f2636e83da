"""A run's life in MLflow: one id, one folder, one status at a time."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.errors import Interrupted, UsageError, UserError
from lit_mnist.redaction import redact
from lit_mnist.terminal import note, warn
from lit_mnist.tracking.active_run import LONGEST_PARAM, Run
from lit_mnist.tracking.creation import adopt, create, create_offline, process_tags, recorded_uri, source_tags
from lit_mnist.tracking.folder import (
    BALLAST,
    BusyError,
    FolderLock,
    Record,
    ReservedSpace,
    read_record,
    remove_if_done,
)
from lit_mnist.tracking.journal.journal import Journal, Point
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter
from lit_mnist.tracking.journal.system_metrics import PREFIX, SystemMetrics
from lit_mnist.tracking.journal.uploader import PATIENCE, Uploader
from lit_mnist.tracking.liveness import Liveness, State, find_liveness, heartbeat_tag
from lit_mnist.tracking.process import this_host
from lit_mnist.tracking.queries.lookup import find_run, local_folder
from lit_mnist.tracking.store import Store, connect, find_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

__all__ = ["Run", "clean_folder", "find_run", "open_run"]


@contextmanager
def open_run(
    experiment: str,
    name: str | None = None,
    run_id: str | None = None,
    system_metrics: bool = True,
    *,
    resume: bool = False,
    offline: bool = False,
    leased: bool = False,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """A new run, or the run `run_id` again: RUNNING inside, FINISHED, FAILED or KILLED after.

    A store that goes away meanwhile stops nothing: what it has not taken stays in the run's folder.

    Args:
        experiment: MLflow experiment of a new run.
        name: What the run is called in the UI; without it, a name that MLflow makes up.
        run_id: A run to look at and to add to, whose status is left as it was found.
        system_metrics: Whether to sample the machine's load.
        resume: Go on with `run_id` where its fit ended: it is RUNNING again, and no step is logged twice.
        offline: Ask no store for anything; all waits in the run's folder for `lit-mnist sync`.
        leased: The caller has proof that no other host works on the run it goes on with (a sweep's lease):
            heartbeats are not looked at.
        tags: Of a new run: it is never there without them.

    Raises:
        UserError: the store cannot be opened, the run is not in it, or another process works on it.

    """
    if run_id is None:
        opened = _new(experiment, name, system_metrics, offline, tags or {})
    elif resume:
        opened = _resumed(run_id, system_metrics, offline, leased)
    else:
        opened = _visited(run_id)
    with opened as run:
        yield run


def clean_folder(run: Run) -> None:
    """Remove the folder of a run that needs it no longer; one with anything that the store has not taken stays."""
    remove_if_done(run.folder)


@contextmanager
def _new(
    experiment: str, name: str | None, system_metrics: bool, offline: bool, tags: Mapping[str, str]
) -> Iterator[Run]:
    store = find_store()
    client = None
    if offline:
        record = create_offline(experiment, name)
    else:
        record, client = create(store, experiment, name, tags)
    folder = store.run_folder(record.id)
    with ExitStack() as stack:
        try:
            stack.enter_context(FolderLock(folder))
            record.write(folder)
            spool = _main_spool(folder)
        except OSError:
            if client is not None:
                with contextlib.suppress(Exception):  # the first error is the one that counts
                    client.set_terminated(record.id, "FAILED")
            raise
        if offline:
            spool.append({"kind": "tags", "values": {**source_tags(), **tags}})
        yield stack.enter_context(_working(store, record, client, spool, system_metrics))


@contextmanager
def _resumed(run_id: str, system_metrics: bool, offline: bool, leased: bool) -> Iterator[Run]:
    current = find_store()
    folder = local_folder(run_id)
    record = read_record(folder) if folder else None
    if offline:
        if folder is None or record is None:
            raise UsageError(f"no folder of a run {run_id!r} in {current.home / 'runs'}: it cannot go on offline")
        running = Journal(folder).status() in (None, "RUNNING")
        former = _check_dead(record.id, find_liveness(folder, record, None), leased) if running else None
        with FolderLock(folder):
            _note_takeover(record.id, former)
            with _again(current, record, folder, None, system_metrics) as run:
                yield run
        return
    store = record.store(current) if record else current
    client = connect(store)
    former = None
    if folder is None or record is None or not record.offline:
        found = find_run(client, store, record.id if record else run_id)
        if found.info.status == "RUNNING":
            liveness = find_liveness(folder, record, found.data.tags)
            former = _check_dead(found.info.run_id, liveness, leased)
        folder = store.run_folder(found.info.run_id)
        record = record or _record(client, store, found)
    with FolderLock(folder):
        _note_takeover(record.id, former)
        record = read_record(folder) or record  # a sync may have held the lock until now
        folder = adopt(client, store, folder, record)
        with _again(store, record, folder, client, system_metrics) as run:
            yield run


@contextmanager
def _again(
    store: Store, record: Record, folder: Path, client: "MlflowClient | None", system_metrics: bool
) -> Iterator[Run]:
    """Work on a run that was worked on before."""
    now = Record(record.id, record.experiment)
    record.argv, record.host, record.process, record.boot = now.argv, now.host, now.process, now.boot
    spool = _main_spool(folder)
    if client is not None:
        if not spool.path.exists():
            spool.seed(_points(client, record.id))
        # At once, for `runs --reap` looks at these; and in the spool, where older ones may wait.
        for tag, value in {**process_tags(), **heartbeat_tag()}.items():
            client.set_tag(record.id, tag, value)
        client.update_run(record.id, "RUNNING")
    record.write(folder)
    spool.append({"kind": "tags", "values": process_tags()})
    spool.append({"kind": "status", "status": "RUNNING", "end_time": None})
    with _working(store, record, client, spool, system_metrics) as run:
        yield run


@contextmanager
def _working(
    store: Store, record: Record, client: "MlflowClient | None", spool: Journal, system_metrics: bool
) -> Iterator[Run]:
    """The run, with a uploader at work and a status at the end."""
    steps: dict[str, int] = {}
    for name, _, _, step in spool.points():
        steps[name] = max(step, steps.get(name, step))
    last = max((step for name, step in steps.items() if name.startswith(PREFIX)), default=-1)
    system = SystemMetrics(last_step=last) if system_metrics else None
    delivery = MLflowWriter(client, record.id, spool) if client else None
    uploader = Uploader(spool, delivery, store.name, system, heartbeat=True)
    run = Run(store, record.id, record.experiment, spool, uploader, record.artifact_uri, client, steps)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except Exception as error:
        text = redact(f"{type(error).__name__}: {error}")[:LONGEST_PARAM]
        _append_last(run, {"kind": "tags", "values": {"error": text}})
        raise
    finally:
        _finish(run, status)


def _finish(run: Run, status: str) -> None:
    """Set the status, as the last thing that is sent; what cannot be done is said and no error."""
    run.uploader.flush()
    _append_last(run, {"kind": "status", "status": status, "end_time": time.time_ns() // 1_000_000})
    if _close(run) or run.mlflow is None:
        return
    with contextlib.suppress(Exception):
        if run.spool.full or shutil.disk_usage(run.folder).free < BALLAST:  # then the store may lack room, too
            run.spool.on_full()
            run.mlflow.set_terminated(run.id, status)


def _append_last(run: Run, entry: dict[str, object]) -> None:
    for _ in range(2):  # on a full disk the first try makes room for the second
        with contextlib.suppress(UserError):
            run.spool.append(entry, reserved=True)
            return


def _close(run: Run) -> bool:
    """End the uploader; says what is left unsent, and returns whether all was sent."""
    sent = run.uploader.close(PATIENCE)
    run.spool.close()
    if run.mlflow is None:
        note(f"run {run.id} is offline in {run.folder}: `lit-mnist sync` sends it to a tracking store")
    elif not sent:
        where = f"{run.spool.waiting()} entries of run {run.id} wait in {run.spool.path}"
        warn(f"the tracking store {run.store.name} has not taken everything: {where}; `lit-mnist sync` sends them")
    return sent


@contextmanager
def _visited(run_id: str) -> Iterator[Run]:
    """A run that exists, for somebody who measures it; whether its fit is still at work does not matter."""
    store = find_store()
    client = connect(store)
    found = find_run(client, store, run_id)
    record = _record(client, store, found)
    folder = store.run_folder(record.id)
    was_there = folder.exists()
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    with FolderLock(folder, name) as lock:
        spool = Journal(folder, name)
        uploader = Uploader(spool, MLflowWriter(client, record.id, spool), store.name)
        run = Run(store, record.id, record.experiment, spool, uploader, record.artifact_uri, client)
        try:
            yield run
        finally:
            uploader.flush()
            if _close(run):
                spool.remove()
            elif read_record(folder) is None:
                record.write(folder)
            lock.path.unlink(missing_ok=True)
    if not was_there:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _main_spool(folder: Path) -> Journal:
    return Journal(folder, on_full=ReservedSpace(folder).drop)


def _record(client: "MlflowClient", store: Store, found: "MlflowRun") -> Record:
    """What there is to say of a run that has no folder."""
    info, tags = found.info, found.data.tags
    return Record(
        info.run_id,
        client.get_experiment(info.experiment_id).name,
        info.run_name,
        recorded_uri(store),
        artifact_uri=info.artifact_uri,
        start_time=info.start_time,
        host=tags.get("host", ""),
        process=tags.get("process", ""),
        boot=tags.get("boot", ""),
    )


def _check_dead(run_id: str, former: Liveness, leased: bool) -> Liveness:
    """Return `former`, the process that worked on a RUNNING run, if the run may be taken over from it.

    Raises:
        BusyError: it is alive, or may be.

    """
    if former.state is State.ALIVE or (former.state is State.PERHAPS and not leased):
        raise BusyError(f"run {run_id} {former.reason}")
    return former


def _note_takeover(run_id: str, former: Liveness | None) -> None:
    """Say that a run is taken over from another host, once nothing refuses it any more."""
    if former is not None and former.host != this_host():
        note(f"run {run_id} was RUNNING on {former.host}: taking it over")


def _points(client: "MlflowClient", run_id: str) -> list[Point]:
    """Every metric point that the store has of the run."""
    names = client.get_run(run_id).data.metrics
    return [
        (point.key, point.value, point.timestamp, point.step)
        for name in names
        for point in client.get_metric_history(run_id, name)
    ]
