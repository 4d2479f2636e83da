"""Opens the storage of studies: a journal file beside the tracking store, or a database for several machines."""

import importlib.util
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from lit_mnist.errors import UsageError, UserError, nearest
from lit_mnist.redaction import redact
from lit_mnist.sweeps.study.locks import FIRST_PAUSE, JournalLock, try_advisory_lock
from lit_mnist.sweeps.study.retry import RetryingStorage
from lit_mnist.tracking.store import find_store, reason, with_time_limit

STORAGE_VARIABLE = "LIT_MNIST_STORAGE"
SQLITE = "sqlite:///"
CONFIRMATION = "/confirm-"
"""Stands between the name of a study and the number of its confirmation, in the confirmation's name."""
STORED = "stored"
"""Study attribute with what the specification says of the search.

It is written last: a study without it was not created to the end, and its next creator completes it.
"""
JOURNAL_START = b'{"op_code":'
"""The first bytes of every journal that Optuna writes (4.4 to 5.0)."""


def default_storage() -> str:
    """The storage that LIT_MNIST_STORAGE names, or else the project's own journal file."""
    return os.environ.get(STORAGE_VARIABLE) or str(find_store().home / "sweeps.journal")


def open_storage(url: str | None) -> BaseStorage:
    """Open the storage at `url`, a database's URL or a journal file's path; create what is missing.

    Calls to the storage are repeated while a database is unreachable: the object returned is a `RetryingStorage`.

    Args:
        url: None for `default_storage`.

    Raises:
        UserError: it cannot be opened.

    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = url or default_storage()
    try:
        # By the form of the URL: a path is a journal file.
        if "://" not in url:
            storage = _open_journal(Path(url).resolve())
        elif url.startswith(SQLITE):
            storage = _open_sqlite(Path(url.removeprefix(SQLITE)).resolve())
        else:
            storage = _open_postgresql(url)
    # The URL is wrong, or the driver that it names is not installed; else the storage itself.
    except (ArgumentError, ImportError) as error:
        hint = "such as postgresql+psycopg://HOST/NAME"
        raise UsageError(f"--storage {redact(url)}: {reason(error)}; {hint}") from None
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot open the studies' storage {redact(url)}: {reason(error)}") from None
    return cast(BaseStorage, storage)


def open_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Open the study `name`.

    Raises:
        UsageError: there is none of that name; the message names the nearest.

    """
    try:
        return optuna.load_study(
            study_name=name,
            storage=storage,
            # Placeholders: `Leases.acquire` sets those of the specification, which differ from trial to trial.
            sampler=optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner(),
        )
    except KeyError:
        names = study_names(storage)
        hint = nearest(name, names, listed=True) if names else "; there is no study yet"
        raise UsageError(f"there is no study {name!r}{hint}") from None


def study_names(storage: BaseStorage) -> list[str]:
    """The names of all studies, sorted."""
    return sorted(study.study_name for study in storage.get_all_studies())


def is_confirmation(name: str) -> bool:
    """True if the study of that name was made by `lit-mnist sweep confirm`."""
    return CONFIRMATION in name


def confirmation_names(storage: BaseStorage, name: str) -> list[str]:
    """The names of the confirmations of the study `name`, in the order in which they were made.

    One whose creator was killed before it was complete is left out.
    """
    found = [
        study.study_name
        for study in storage.get_all_studies()
        if study.study_name.startswith(f"{name}{CONFIRMATION}") and STORED in study.user_attrs
    ]
    return sorted(found, key=confirmation_number)


def confirmation_number(name: str) -> int:
    """The number of a confirmation, by its name."""
    return int(name.rpartition("-")[2])


def _open_journal(path: Path) -> RetryingStorage:
    # Checked first, because JournalLock would cut off what follows the last line end of any file.
    with suppress(FileNotFoundError), path.open("rb") as file:
        start = file.read(len(JOURNAL_START))
        if not JOURNAL_START.startswith(start):  # a process killed in its first write may have left less of it
            raise UsageError(
                f"--storage {path} is not a journal of studies but a file of another kind, which is left as it is:"
                f" name another file, or {SQLITE}FILE for a database"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalLock(path)
    # Optuna reads without the lock. Taken once here, it repairs the file before the first read.
    lock.acquire()
    lock.release()
    # Any: Optuna's base class of such locks is private, and has no more than these two methods.
    journal = JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, lock)))
    return RetryingStorage(journal, str(path), engine=None, file=path)


# Optuna (4.4 to 5.0) creates its tables without a lock: of 20 processes that opened a new database at once, 15
# failed on SQLite and 10 on PostgreSQL. `get_storage` adds the cache of finished trials that Optuna gives every
# database.


def _open_sqlite(path: Path) -> RetryingStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        storage = get_storage(RDBStorage(f"{SQLITE}{path}"))
    return RetryingStorage(storage, f"{SQLITE}{path}", engine=None, file=path)


def _open_postgresql(url: str) -> RetryingStorage:
    if not url.startswith("postgresql"):
        raise UsageError(f"--storage {redact(url)}: take a file's path, sqlite:/// or postgresql+psycopg://")
    # Without a driver in the URL SQLAlchemy 2.0 would take psycopg2, which is not a dependency of ours.
    url = with_time_limit(url.replace("postgresql://", "postgresql+psycopg://", 1))
    if url.startswith("postgresql+psycopg://") and importlib.util.find_spec("psycopg") is None:
        raise UserError("a study in PostgreSQL needs psycopg: `pip install 'lit-mnist[postgres]'`")
    # One connection for the lock under which tables are created, and no pool to keep it.
    engine = create_engine(make_url(url), poolclass=NullPool)
    while (connection := try_advisory_lock(engine, "")) is None:
        time.sleep(FIRST_PAUSE)
    try:
        # With pool_pre_ping a connection that a restarted server has closed is replaced instead of used. Each
        # process keeps one connection; others, as for a call while it holds a lock, are closed after use.
        database = RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4})
    finally:
        connection.close()
    return RetryingStorage(get_storage(database), redact(url), engine=database.engine, file=None)
