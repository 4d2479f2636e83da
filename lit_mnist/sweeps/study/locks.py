"""Locks between processes, for studies and journal files, and a check that only one machine uses a storage file.

The operating system or the database server frees a lock when its process dies, for whatever reason.
"""

import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from filelock import FileLock
from optuna.storages import BaseStorage
from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from lit_mnist.errors import UserError
from lit_mnist.sweeps.study.retry import RetryingStorage
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.process import sees_processes_of, this_boot, this_host

FIRST_PAUSE, MAX_PAUSE = 0.02, 0.5
"""Seconds between the first two attempts to take a lock in PostgreSQL, and at most between later ones."""
HOST_INTERVAL = 10.0
"""Seconds between two updates of the file that says which machine uses a storage file."""
HOST_TIMEOUT = 60.0
"""Seconds without an update after which another machine may use the storage file."""


class HeldLock:
    """A study's lock while it is held.

    Args:
        connection: The connection that holds a lock in PostgreSQL; None for a file lock.

    """

    def __init__(self, connection: Connection | None = None) -> None:
        self._connection = connection

    def check(self) -> None:
        """Check that the lock is still held: PostgreSQL frees it if the connection is lost.

        Raises:
            SQLAlchemyError: the lock is lost, and another process may hold it.

        """
        # Any statement fails on a lost connection, with which the transaction and its lock have ended.
        if self._connection is not None:
            self._connection.execute(text("SELECT 1"))


@contextmanager
def study_lock(storage: BaseStorage, study: str) -> Iterator[HeldLock]:
    """Hold the lock of a study, which excludes all other processes on all machines.

    Args:
        storage: The result of `open_storage`.
        study: The study's name; the study need not exist yet.

    """
    opened = cast(RetryingStorage, storage)
    if opened.engine is None:
        assert opened.file is not None, "a storage is a server or a file"
        # A hash, because a study's name may contain characters that are not allowed in file names.
        digest = hashlib.sha256(study.encode()).hexdigest()[:12]
        # Polled often, because a lease takes milliseconds.
        with FileLock(opened.file.with_name(f".{opened.file.name}.{digest}.lock"), poll_interval=0.01):
            yield HeldLock()
        return
    # PostgreSQL: try, pause without a connection, and try again.
    engine, pause = opened.engine, FIRST_PAUSE
    while (connection := opened.retry(lambda: try_advisory_lock(engine, study))) is None:
        # A random pause separates processes that failed together. SystemRandom, since forked processes share the
        # state of Python's generator.
        time.sleep(pause * random.SystemRandom().uniform(0.5, 1))
        pause = min(1.5 * pause, MAX_PAUSE)
    try:
        yield HeldLock(connection)
    finally:
        with suppress(SQLAlchemyError):  # a restarted server has already freed the lock
            connection.rollback()
        connection.close()


def try_advisory_lock(engine: Engine, name: str) -> Connection | None:
    """Return a connection that holds the lock `name` of a PostgreSQL server; None if another process holds it.

    The lock belongs to the connection's transaction and is freed with it. The empty name, which no study has, is
    for the lock under which tables are created.

    A caller that does not get the lock tries again later, without keeping a connection. A blocking lock function
    of PostgreSQL would keep one, and heartbeats need a second: 64 workers held 113 connections, and a server
    allows 100 by default. With a pooler such as PgBouncer, waiting processes could leave no connection to the
    lock's owner.
    """
    # 63 bits of a hash, since the server identifies locks by a bigint.
    key = int.from_bytes(hashlib.sha256(f"lit-mnist sweep {name}".encode()).digest()[:8]) >> 1
    # Closed unless it got the lock, also if the query fails.
    connection = engine.connect()
    try:
        if connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar():
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


@contextmanager
def one_host(storage: BaseStorage) -> Iterator[Callable[[], None]]:
    """Ensure that only one machine or container at a time runs sweeps on a storage that is a file.

    File locks may work on one machine only (NFS, Lustre), and processes on other machines cannot be looked up: two
    machines would damage the file and take over each other's trials. A second file next to it says which machine
    uses it.

    Yields:
        A function to call every few seconds, which records that this machine still uses the file.

    Raises:
        UserError: another machine uses the file, at the start or when the function is called.

    """
    file = cast(RetryingStorage, storage).file
    if file is None:
        yield lambda: None
        return
    path, renewed = file.with_name(f".{file.name}.host"), -HOST_INTERVAL

    def renew() -> None:
        nonlocal renewed
        # The caller calls this several times a second.
        if time.monotonic() - renewed < HOST_INTERVAL:
            return
        renewed = time.monotonic()
        # Times of the file system, since the clocks of two machines may differ.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name) as now, suppress(OSError, ValueError):
            age = Path(now.name).stat().st_mtime - path.stat().st_mtime
            user = json.loads(path.read_text())
            if age < HOST_TIMEOUT and not sees_processes_of(user["host"], user["boot"]):
                raise UserError(
                    f"the studies in {file} are in use on {user['host']} (last seen {max(age, 0):.0f} s ago):"
                    " a file serves one machine or container; for several take"
                    " --storage postgresql+psycopg://HOST/NAME"
                )
        replace_text(path, json.dumps({"host": this_host(), "boot": this_boot()}))

    # Called at the start, so that nothing is written to a file that another machine uses.
    renew()
    yield renew
    path.unlink(missing_ok=True)  # another sweep on this machine creates it again


class JournalLock:
    """The lock of a journal file, which also repairs the file after a process was killed while writing to it.

    Optuna's own locks (4.4 to 5.0) are files that are created and deleted: if a killed process leaves one behind,
    all other processes wait for 30 s.

    Args:
        path: The journal.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # By default filelock polls every 50 ms, several times as long as Optuna holds the lock for a record.
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False, poll_interval=0.005)

    def acquire(self) -> bool:
        """Wait for the lock, then remove an incomplete last line; returns True, as Optuna expects."""
        self._lock.acquire()
        try:
            self._cut_incomplete_line()
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Free the lock."""
        self._lock.release()

    def _cut_incomplete_line(self) -> None:
        """Truncate the journal after its last line end.

        Optuna appends each record with its line end in one write. Bytes after the last line end are therefore from
        a process that was killed during that write; the next record would be appended to the same line, and the
        journal could no longer be read.
        """
        block = 1 << 16
        with suppress(FileNotFoundError), self.path.open("r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            # Search backwards in blocks for the last line end, which is usually the last byte of the file.
            while end:
                start = max(0, end - block)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
