"""Where studies are kept: a journal file beside the store for one machine, a database for several."""

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from lit_mnist.errors import UsageError, UserError, nearest
from lit_mnist.redaction import redact
from lit_mnist.sweeps.search.optuna_private import JournalFileLock, cached_storage, database_url, journal_path
from lit_mnist.sweeps.study.retry import RetryingStorage, wait_out
from lit_mnist.tracking.store import find_store, reason, with_time_limit

VARIABLE = "LIT_MNIST_STORAGE"
SQLITE = "sqlite:///"
JOURNAL = b'{"op_code":'
"""What every journal of Optuna's begins with (4.4 and 5.0)."""


def default_storage() -> str:
    """What LIT_MNIST_STORAGE names, or else the project's own journal file."""
    return os.environ.get(VARIABLE) or str(find_store().home / "sweeps.journal")


def open_storage(url: str | None) -> BaseStorage:
    """The storage at `url`, a database's URL or a journal file's path; what is missing is created.

    A database that goes away later is waited for, see `RetryingStorage`.

    Raises:
        UserError: it cannot be opened.

    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = url or default_storage()
    try:
        storage = _database(url) if "://" in url else _journal(Path(url).resolve())
    except (ArgumentError, ImportError) as error:
        raise UsageError(
            f"--storage {shown(url)}: {reason(error)}; such as postgresql+psycopg://HOST/NAME"
        ) from None
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot open the studies' storage {shown(url)}: {reason(error)}") from None
    return cast(BaseStorage, RetryingStorage(storage, shown(url)))


def open_study(storage: BaseStorage, name: str) -> optuna.Study:
    """The study `name`.

    Raises:
        UsageError: there is none.

    """
    try:
        return optuna.load_study(
            study_name=name,
            storage=storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner(),
        )
    except KeyError:
        names = study_names(storage)
        hint = nearest(name, names, listed=True) if names else "; there is no study yet"
        raise UsageError(f"there is no study {name!r}{hint}") from None


def study_names(storage: BaseStorage) -> list[str]:
    """The names of all studies."""
    return sorted(study.study_name for study in storage.get_all_studies())


def is_shared(storage: BaseStorage) -> bool:
    """Whether other machines may work on the same studies."""
    return database_url(_own(storage)) is not None and not _sqlite_path(storage)


@contextmanager
def study_lock(storage: BaseStorage, study: str) -> Iterator["Held"]:
    """Keep all other processes from what must be done by one at a time; freed when this process dies."""
    if is_shared(storage):
        url = cast(URL, database_url(_own(storage)))
        connection = wait_out(lambda: _acquire(url, _lock_key(study)), cast(RetryingStorage, storage))
        try:
            yield Held(connection)
        finally:
            with suppress(SQLAlchemyError):  # a server that has restarted has freed it already
                connection.rollback()
            connection.close()
            connection.engine.dispose()
    else:
        digest = hashlib.sha256(study.encode()).hexdigest()[:12]
        path = _path(storage)
        with FileLock(path.with_name(f".{path.name}.{digest}.lock"), poll_interval=0.01):
            yield Held(None)


def _acquire(url: URL, key: int) -> Connection:
    """A connection that holds the lock `key` until its transaction ends, as it does with the connection."""
    engine = create_engine(url, poolclass=NullPool)
    connection = engine.connect()
    try:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    except BaseException:
        connection.close()
        engine.dispose()
        raise
    return connection


class Held:
    """A study's lock, as long as it is held."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def check(self) -> None:
        """Make sure that a server's restart has not freed the lock meanwhile.

        Raises:
            SQLAlchemyError: it has.

        """
        if self._connection is not None:
            self._connection.execute(text("SELECT 1"))


class KernelLock(JournalFileLock):
    """The journal's lock, which the system frees when its holder dies; what that one left half written is mended.

    Args:
        path: The journal.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False, poll_interval=0.005)

    def acquire(self) -> bool:
        """Wait for the lock; cut off a last line that has no end."""
        self._lock.acquire()
        try:
            _mend(self.path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Free the lock."""
        self._lock.release()


def shown(url: str) -> str:
    """The URL without its password."""
    return redact(url)


def _journal(path: Path) -> BaseStorage:
    _check_journal(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = KernelLock(path)
    lock.acquire()
    lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _check_journal(path: Path) -> None:
    """Refuse a file that is something else, before `_mend` would cut off what follows its last line end.

    Raises:
        UserError: it is not empty, and does not begin as every journal does.

    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        start = file.read(len(JOURNAL))
        if not JOURNAL.startswith(start):  # a process killed in its first write may have left less of it
            raise UsageError(
                f"--storage {path} is not a journal of studies but a file of another kind, which is left as it is:"
                f" name another file, or {SQLITE}FILE for a database"
            )


def _mend(path: Path, block: int = 1 << 16) -> None:
    """Cut off what follows the journal's last line end: a process was killed while it wrote that."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - block)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _database(url: str) -> BaseStorage:
    """Optuna creates its tables without a lock of its own: of several first starts at once most would fail."""
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE)).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            return cached_storage(RDBStorage(f"{SQLITE}{path}"))
    if not url.startswith("postgresql"):
        raise UsageError(f"--storage {shown(url)}: take a file's path, sqlite:/// or postgresql+psycopg://")
    url = with_time_limit(url.replace("postgresql://", "postgresql+psycopg://", 1))
    if url.startswith("postgresql+psycopg://") and importlib.util.find_spec("psycopg") is None:
        raise UserError("a study in PostgreSQL needs psycopg: `pip install 'lit-mnist[postgres]'`")
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _lock_key("")})
        return cached_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))


def _lock_key(name: str) -> int:
    """What PostgreSQL knows a study's lock by; no study has no name, which is left for the tables."""
    return int.from_bytes(hashlib.sha256(f"lit-mnist sweep {name}".encode()).digest()[:8]) >> 1


def _own(storage: BaseStorage) -> Any:
    """Optuna's storage within."""
    return storage.within if isinstance(storage, RetryingStorage) else storage


def _sqlite_path(storage: BaseStorage) -> Path | None:
    url = database_url(_own(storage))
    return Path(str(url.database)) if url is not None and url.drivername.startswith("sqlite") else None


def _path(storage: BaseStorage) -> Path:
    """The file of a storage that is one."""
    return _sqlite_path(storage) or journal_path(cast(JournalStorage, _own(storage)))
