"""Opens the storage of studies: a journal file beside the tracking store, or a database for several machines."""

import importlib.util
import os
import shlex
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
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.study.locks import FIRST_PAUSE, JournalLock, try_advisory_lock
from lit_mnist.sweeps.study.retry import RetryingStorage
from lit_mnist.tracking.store import find_store, reason, with_time_limit

STORAGE_VARIABLE = "LIT_MNIST_STORAGE"
SQLITE = "sqlite:///"
CONFIRMATION = "/confirm-"
"""The part of a confirmation's name between the study's name and the confirmation's number."""
STORED = "stored"
"""Study attribute with the settings of the search from the specification.

It is written last: a study without it is incomplete, and the next sweep completes it.
"""
JOURNAL_START = b'{"op_code":'
"""The first bytes of every journal that Optuna writes (4.4 to 5.0)."""


def default_storage() -> str:
    """The storage in LIT_MNIST_STORAGE if it is set, otherwise the project's journal file."""
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
    default = default_storage()
    url = url or default
    try:
        # A path is a journal file.
        if "://" not in url:
            storage = _open_journal(Path(url).resolve())
        elif url.startswith(SQLITE):
            path = Path(url.removeprefix(SQLITE)).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            # Under a lock for the reason given at `_open_postgresql`.
            with FileLock(path.with_name(f".{path.name}.lock")):
                database = get_storage(RDBStorage(f"{SQLITE}{path}"))
            storage = RetryingStorage(database, f"{SQLITE}{path}", engine=None, file=path)
        else:
            storage = _open_postgresql(url)
    # The URL is wrong, or its driver is not installed; the errors below are those of the storage itself.
    except (ArgumentError, ImportError) as error:
        hint = "such as postgresql+psycopg://HOST/NAME"
        raise UsageError(f"--storage {redact(url)}: {reason(error)}; {hint}") from None
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot open the studies' storage {redact(url)}: {reason(error)}") from None
    if url != default:
        storage.option = f" --storage {shlex.quote(redact(url))}"
    return cast(BaseStorage, storage)


def storage_option(study: optuna.Study) -> str:
    """Return ` --storage URL`, for commands on a study that is not in the default storage; otherwise nothing.

    Passwords are replaced by ***.
    """
    storage = storage_of(study)
    return storage.option if isinstance(storage, RetryingStorage) else ""


def open_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Open the study `name`.

    Raises:
        UsageError: there is no study of that name; the message names the most similar one.

    """
    try:
        return optuna.load_study(
            study_name=name,
            storage=storage,
            # Placeholders: `Leases` sets the sampler and the pruner for each trial.
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
    """The names of the confirmations of the study `name`, in the order in which they were created.

    Incomplete ones, whose creation was interrupted, are left out.
    """
    found = [
        study.study_name
        for study in storage.get_all_studies()
        if study.study_name.startswith(f"{name}{CONFIRMATION}") and STORED in study.user_attrs
    ]
    return sorted(found, key=confirmation_number)


def confirmation_number(name: str) -> int:
    """The number in a confirmation's name."""
    return int(name.rpartition("-")[2])


def _open_journal(path: Path) -> RetryingStorage:
    # Checked first, because JournalLock would truncate any file after its last line end.
    with suppress(FileNotFoundError), path.open("rb") as file:
        start = file.read(len(JOURNAL_START))
        if not JOURNAL_START.startswith(start):  # a process killed during its first write may have written a part
            raise UsageError(
                f"--storage {path} is not a journal of studies but a file of another kind, which is left as it is:"
                f" name another file, or {SQLITE}FILE for a database"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalLock(path)
    # Optuna reads without the lock. Acquiring it once repairs the file before the first read.
    lock.acquire()
    lock.release()
    # Any, since Optuna's base class of such locks, which has just these two methods, is private.
    journal = JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, lock)))
    return RetryingStorage(journal, str(path), engine=None, file=path)


def _open_postgresql(url: str) -> RetryingStorage:
    """Open a PostgreSQL database; its tables are created under a lock.

    Optuna (4.4 to 5.0) creates tables without a lock: of 20 processes that opened a new database at once, 15
    failed on SQLite and 10 on PostgreSQL. `get_storage` adds Optuna's cache of finished trials.
    """
    if not url.startswith("postgresql"):
        raise UsageError(f"--storage {redact(url)}: take a file's path, sqlite:/// or postgresql+psycopg://")
    # Without a driver in the URL, SQLAlchemy 2.0 would use psycopg2, which is not a dependency of this project.
    url = with_time_limit(url.replace("postgresql://", "postgresql+psycopg://", 1))
    if url.startswith("postgresql+psycopg://") and importlib.util.find_spec("psycopg") is None:
        raise UserError("a study in PostgreSQL needs psycopg: `pip install 'lit-mnist[postgres]'`")
    # A single connection, without a pool, for the lock under which tables are created.
    engine = create_engine(make_url(url), poolclass=NullPool)
    while (connection := try_advisory_lock(engine, "")) is None:
        time.sleep(FIRST_PAUSE)
    try:
        # pool_pre_ping replaces connections that a restarted server has closed. Each process keeps one connection;
        # additional ones, for example for calls while it holds a lock, are closed after use.
        database = RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4})
    finally:
        connection.close()
    return RetryingStorage(get_storage(database), redact(url), engine=database.engine, file=None)
