"""Which MLflow store is used, and its first creation."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from lit_mnist.errors import UserError
from lit_mnist.redaction import HIDDEN, redact, redact_urls

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
URI = "MLFLOW_TRACKING_URI"
POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"
DATABASES = ("postgresql", "mysql", "mssql")
"""Kinds of database servers that MLflow can use as a tracking store."""
CONNECT_TIMEOUT = 5
"""Seconds after which a database server that does not answer counts as unreachable."""


class StoreError(UserError):
    """The tracking store cannot be opened."""


@dataclass(frozen=True)
class Store:
    """A tracking store, and the folder where this machine keeps its runs' files."""

    uri: str
    home: Path
    """The project's `mlruns` folder."""

    @property
    def name(self) -> str:
        """The URI as it may be shown and stored: without a password."""
        return redact_urls(self.uri)

    @property
    def artifacts(self) -> str | None:
        """Where new experiments keep artifacts; None leaves it to the server."""
        return (self.home / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None

    def run_folder(self, run_id: str) -> Path:
        """Where a run keeps what it needs while it runs, checkpoints above all."""
        return self.home / "runs" / run_id


def find_store(start: Path | None = None) -> Store:
    """The store that MLFLOW_TRACKING_URI names, or else the project's own, the same from any of its folders."""
    home = project_root(start or Path.cwd()) / "mlruns"
    return Store(os.environ.get(URI) or local_uri(home), home)


def project_root(start: Path) -> Path:
    """The nearest folder at or above `start` that is a project or holds a store; without one, `start`."""
    marks = ("mlruns/mlflow.db", "pyproject.toml", ".git")
    start = start.resolve()
    for folder in (start, *start.parents):
        if any((folder / mark).exists() for mark in marks):
            return folder
    return start


def local_uri(home: Path) -> str:
    """The URI of the database in `home`."""
    return f"{SQLITE}{home / 'mlflow.db'}"


def connect(store: Store) -> "MlflowClient":
    """A client of the store, whose database is created where it is missing.

    Raises:
        StoreError: the store cannot be opened.

    """
    import_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if HIDDEN in store.uri:
        raise StoreError(
            f"the password of the tracking store {store.uri} is kept nowhere: set {URI} to its full URI"
        )
    uri = with_time_limit(store.uri)
    named = os.environ.get(URI)
    mlflow.set_tracking_uri(uri)  # for whoever goes on with MLflow's own functions
    # It sets the variable, too, and so would make this store that of every project and of every run to come.
    os.environ.pop(URI, None)
    if named is not None:
        os.environ[URI] = named
    try:
        if uri.startswith(SQLITE):
            return _connect_sqlite(uri)
        if _is_database_server(uri):
            _check_reachable(uri)
        return _checked(mlflow.MlflowClient(uri))
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        choice = "; start it, or take `lit-mnist fit --offline`" if store.uri.startswith("http") else ""
        raise StoreError(f"cannot open the tracking store {store.name}: {reason(error)}{choice}") from None


def with_time_limit(uri: str) -> str:
    """The URI with a time limit for connecting where it names a database server and has none of its own.

    libpq would wait for more than two minutes for a host that does not answer.
    """
    if not _is_database_server(uri) or uri.startswith("mssql") or "connect_timeout=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}connect_timeout={CONNECT_TIMEOUT}"


def _is_database_server(uri: str) -> bool:
    return uri.partition("://")[0].partition("+")[0] in DATABASES


def _check_reachable(uri: str) -> None:
    """Connect once: MLflow (3.1 to 3.17) itself tries ten times, in silence, with pauses of 100 s in all."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    create_engine(uri, poolclass=NullPool).connect().close()


def import_mlflow() -> None:
    """Import MLflow, whose manners the environment sets."""
    # Quiet before the import, which configures them: nothing a user can act on comes from these.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own patience with a server that does not answer is many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow before 3.8 resets alembic's levels with each migration (fileConfig in its env.py), but not filters.
    logging.getLogger("alembic.runtime.migration").addFilter(lambda record: record.levelno >= logging.WARNING)
    # What these say, with a traceback or once a try, is said once by whoever meets the error.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def experiment_id(client: "MlflowClient", store: Store, name: str) -> str:
    """The id of experiment `name`, created where it is missing; safe among many processes.

    Raises:
        UserError: an experiment of that name was deleted.

    """
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location=store.artifacts))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise UserError(
                    f"cannot create the experiment {name!r} in {store.name}: {reason(error)}"
                ) from None
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the experiment {name!r} was deleted; bring it back with"
            f" `mlflow experiments restore --experiment-id {found.experiment_id}`, or take --tracking.experiment"
        )
    return str(found.experiment_id)


def one_line(error: BaseException) -> str:
    """The error's text without line breaks and passwords."""
    return " ".join(redact(str(error)).split())


def reason(error: BaseException) -> str:
    """What a store's error says in the end, in one line: a database's own words, or a connection's."""
    # MlflowException keeps the database's error as its message, or as its cause.
    candidates = (error, error.__cause__, getattr(error, "message", None))
    own_words = next((found for each in candidates if (found := getattr(each, "orig", None))), None)
    text = one_line(own_words or error)
    return (text.partition("(Caused by ")[2] or text)[:300]


def _connect_sqlite(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    # SQLAlchemy's pool would keep connections open until the garbage collector meets them, at any time and in any
    # thread, which Python 3.13 reports as "unclosed database". Opening the file anew costs 0.2 ms a call.
    os.environ.setdefault(POOL, "NullPool")
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if path.exists() and not os.access(path.parent, os.W_OK):  # a read-only database, whose tables must be there
        return _checked(MlflowClient(uri))
    if not str(path).startswith("file:"):  # SQLite's own form of a URI, which says what may be created
        path.parent.mkdir(parents=True, exist_ok=True)
        # MLflow creates its tables without a lock of its own: of several first starts at once most would fail.
        with FileLock(path.with_name(f".{path.name}.lock")):
            return _checked(MlflowClient(uri))
    return _checked(MlflowClient(uri))


def _checked(client: "MlflowClient") -> "MlflowClient":
    client.get_experiment("0")
    return client
