"""Finds and opens the tracking store."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from lit_mnist.errors import UserError, one_line
from lit_mnist.redaction import HIDDEN, redact_urls
from lit_mnist.tracking.mlflow_private import is_database_server, quiet_loggers

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
URI = "MLFLOW_TRACKING_URI"
POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"
CONNECT_TIMEOUT = 5
"""Seconds without an answer after which a database server counts as unreachable."""


class StoreError(UserError):
    """The tracking store cannot be opened."""


@dataclass(frozen=True)
class Store:
    """A tracking store, and the folder on this machine for the files of its runs."""

    uri: str
    home: Path
    """The project's `mlruns` folder."""

    @property
    def name(self) -> str:
        """The URI without a password, for printing and storing."""
        return redact_urls(self.uri)

    @property
    def portable_uri(self) -> str | None:
        """The URI for `run.json`, without a password; None for the project's own database, which may be moved."""
        return None if self.uri == local_uri(self.home) else self.name

    @property
    def artifacts(self) -> str | None:
        """Location of the artifacts of new experiments; None for the server's default."""
        return (self.home / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None

    def run_folder(self, run_id: str) -> Path:
        """The folder of a run, for checkpoints, journal and other files while it runs."""
        return self.home / "runs" / run_id


def find_store() -> Store:
    """The store in MLFLOW_TRACKING_URI if it is set, otherwise the project's own database.

    The project is the nearest folder, at or above the working directory, that has a store, a `pyproject.toml` or a
    `.git`; otherwise it is the working directory itself.
    """
    start = Path.cwd().resolve()
    marks = ("mlruns/mlflow.db", "pyproject.toml", ".git")
    parents = (start, *start.parents)
    # Searched upwards, as git does, so that commands work in every subfolder of a project.
    project = next((folder for folder in parents if any((folder / mark).exists() for mark in marks)), start)
    home = project / "mlruns"
    return Store(os.environ.get(URI) or local_uri(home), home)


def local_uri(home: Path) -> str:
    """The URI of the database in `home`."""
    return f"{SQLITE}{home / 'mlflow.db'}"


def connect(store: Store) -> "MlflowClient":
    """Return a client of the store, after checking that it answers; a missing database file is created.

    Raises:
        StoreError: the store cannot be opened.

    """
    import_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    # A URI from a `run.json` contains no password.
    if HIDDEN in store.uri:
        raise StoreError(
            f"the password of the tracking store {store.uri} is kept nowhere: set {URI} to its full URI"
        )
    uri = with_time_limit(store.uri)
    named = os.environ.get(URI)
    mlflow.set_tracking_uri(uri)  # for user code that calls MLflow's fluent functions
    # This also sets the environment variable, which would affect every later `find_store`.
    os.environ.pop(URI, None)
    if named is not None:
        os.environ[URI] = named
    # When MLflow 3.1 creates a database, its migrations write a dozen INFO lines to stderr. They also give the
    # root logger a handler, which would print the messages of all libraries from then on.
    disabled, handlers, level = logging.root.manager.disable, logging.root.handlers[:], logging.root.level
    logging.disable(logging.INFO)
    try:
        if uri.startswith(SQLITE):
            return _connect_sqlite(uri)
        if is_database_server(uri):
            # Checked first, since MLflow (3.1 to 3.17) silently tries ten times, over 100 s.
            create_engine(uri, poolclass=NullPool).connect().close()
        return _checked_client(uri)
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        # For a server, the message suggests to start it.
        choice = "; start it, or take `lit-mnist fit --offline`" if store.uri.startswith("http") else ""
        raise StoreError(f"cannot open the tracking store {store.name}: {reason(error)}{choice}") from None
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def with_time_limit(uri: str) -> str:
    """The URI with a time limit for connecting, if it names a database server and has none yet.

    Without it, libpq waits for more than two minutes for a host that does not answer.
    """
    if not is_database_server(uri) or uri.startswith("mssql") or "connect_timeout=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}connect_timeout={CONNECT_TIMEOUT}"


def import_mlflow() -> None:
    """Import MLflow, configured to print little and not to wait for minutes."""
    # Before the import, which reads these variables. setdefault keeps the user's values.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # By default, MLflow tries for many minutes to reach a server that does not answer.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    quiet_loggers()


def experiment_id(client: "MlflowClient", store: Store, name: str) -> str:
    """The id of experiment `name`, created if it is missing; safe if several processes do so at once.

    Raises:
        UserError: an experiment of that name was deleted.

    """
    from mlflow.exceptions import MlflowException

    # Get, create, get: creating first would raise an error for every run except the first.
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location=store.artifacts))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process may have created it in between
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


def reason(error: BaseException) -> str:
    """The cause of a store's error, from the database driver or the network, in a line of up to 300 characters."""
    # SQLAlchemy stores the driver's error in `orig`, whose message contains no SQL and no link to a manual.
    # MlflowException has the driver's error as its message or as its cause.
    candidates = (error, error.__cause__, getattr(error, "message", None))
    original = next((found for each in candidates if (found := getattr(each, "orig", None))), None)
    text = one_line(original or error)
    return (text.partition("(Caused by ")[2] or text)[:300]


def _connect_sqlite(uri: str) -> "MlflowClient":
    # SQLAlchemy's pool would keep connections open until they are garbage collected, at any time and in any
    # thread, which Python 3.13 reports as "unclosed database". Opening the file for each call costs 0.2 ms.
    os.environ.setdefault(POOL, "NullPool")
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    read_only = path.exists() and not os.access(path.parent, os.W_OK)
    # "file:" is SQLite's own form of a URI, which specifies itself whether a file may be created.
    if read_only or str(path).startswith("file:"):
        return _checked_client(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow creates its tables without a lock: if several processes open a new database, most of them fail.
    with FileLock(path.with_name(f".{path.name}.lock")):
        return _checked_client(uri)


def _checked_client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    # Check with a request, since a client can be created for a server that does not answer. Experiment 0 always
    # exists.
    client = MlflowClient(uri)
    client.get_experiment("0")
    return client
