"""All code that relies on MLflow's internals: names of tables, modules and loggers, and limits.

`tests/tracking/test_mlflow_contract.py` compares it with the installed MLflow and reports changes by an upgrade.
"""

import base64
import importlib
import inspect
import json
import logging
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Connection, TableClause
    from sqlalchemy.sql import ColumnElement

TRIED = ("3.1", "3.17")
"""The oldest and the newest minor version of MLflow with which this module was tested."""

DATABASE_SERVERS = ("postgresql", "mysql", "mssql")
"""Types of database servers that MLflow can use as a tracking store."""
SQL_STORE = "mlflow.store.tracking.sqlalchemy_store"
"""The module of MLflow's database stores, which MLflow imports when a database is first opened."""
CONNECTION_LOGGER = "mlflow.store.db.utils"
"""The logger that reports each failed attempt to connect to a database, with a traceback."""
COLUMNS = {
    "experiments": ("experiment_id", "name", "lifecycle_stage"),
    "runs": ("run_uuid", "experiment_id", "name", "status", "start_time", "end_time", "lifecycle_stage"),
    "params": ("run_uuid", "key", "value"),
    "tags": ("run_uuid", "key", "value"),
    "metrics": ("run_uuid", "key", "value", "timestamp", "step", "is_nan"),
    "latest_metrics": ("run_uuid", "key", "value", "timestamp", "step", "is_nan"),
}
"""Tables and columns of a database store that are read (`queries/reader.py`) or written here."""

MAX_METRICS_PER_BATCH = 1000
"""Metric points that MLflow accepts in one call."""
MAX_PARAMS_TAGS_PER_BATCH = 100
"""Parameters, or tags, that MLflow accepts in one call."""
MAX_PARAM_LENGTH = 6000
"""Characters that MLflow accepts as the value of a parameter."""
MAX_NOTE_LENGTH = 5000
"""Characters that MLflow 3.1 accepts as a tag of an experiment, which is the lowest limit for tags."""

DESCRIPTION = "mlflow.note.content"
"""The tag, of a run or an experiment, that the UI shows as its description, in Markdown."""
VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the experiment tags in which the UI stores saved views."""
UI_WORDS = (
    "viewStateShareKey", "workflowType", "machine_learning", "deflate;", "get-artifact", "selectedColumns",
    "orderByKey", "orderByAsc", "searchFilter", "runsHiddenMode", VIEW_TAG, DESCRIPTION,
)  # fmt: skip
"""Words in the UI's JavaScript on which `ui_path`, `artifact_path` and `saved_view` rely."""


LOGGED_IMAGES = "mlflow.loggedImages"
"""The tag of a run that has series of images."""


def image_paths(key: str, step: int) -> tuple[str, str]:
    """The artifacts of one step of an image series: the full image, and the preview that the UI shows first.

    `MlflowClient.log_image` adds a random id to each name, so that an image that is logged again exists twice.
    These names depend only on key and step.
    """
    from mlflow import MlflowClient

    # The UI of MLflow 3.1 supports only names with %, which later versions replaced (mlflow#21085).
    mark = "+" if "+step+" in inspect.getsource(MlflowClient.log_image) else "%"
    unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{key} {step}")
    # The timestamp only matters if there are two images of the same step.
    name = mark.join([f"images/{key}", "step", str(step), "timestamp", str(max(step, 1)), str(unique)])
    return f"{name}.png", f"{name}{mark}compressed.webp"


def import_sql_store() -> None:
    """Import MLflow's database store now; otherwise the first connection to a database imports it."""
    importlib.import_module(SQL_STORE)


def quiet_loggers() -> None:
    """Silence log records about problems of stores, which this project reports itself in one line."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow before 3.8 resets the levels of alembic's loggers with each migration (fileConfig in its env.py), but
    # not their filters.
    logging.getLogger("alembic.runtime.migration").addFilter(lambda record: record.levelno >= logging.WARNING)
    logging.getLogger(CONNECTION_LOGGER).setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def is_database_server(uri: str) -> bool:
    """True if a store's URI names a database server, as opposed to a database file or an MLflow server."""
    return uri.partition("://")[0].partition("+")[0] in DATABASE_SERVERS


def missing_columns(connection: "Connection", tables: Sequence[str] = tuple(COLUMNS)) -> list[str]:
    """The columns of COLUMNS that the connected database lacks, as TABLE.COLUMN."""
    from sqlalchemy import inspect

    # From the database itself, since its tables may have been created by another version of MLflow.
    inspector = inspect(connection)
    missing = []
    for table in tables:
        found = inspector.get_columns(table) if inspector.has_table(table) else []
        missing += [f"{table}.{name}" for name in sorted({*COLUMNS[table]} - {column["name"] for column in found})]
    return missing


def delete_points(uri: str, run_id: str, step: int, before: int, keep: Sequence[str]) -> bool:
    """Delete a run's metric points after `step`, directly in the database, and update each metric's latest value.

    MLflow itself deletes points only together with their run. Repeating the call has no further effect.

    Args:
        uri: URI of the tracking store.
        run_id: The run's full id.
        step: Points at this step and before it stay.
        before: Points logged at this time (ms since 1970) or later stay.
        keep: Prefixes of metrics that stay.

    Returns:
        False, without deleting anything, if the store is not a database or its tables differ from COLUMNS.

    Raises:
        SQLAlchemyError: the database cannot be reached or written to.

    """
    if not (uri.startswith("sqlite:") or is_database_server(uri)):
        return False
    from sqlalchemy import column, create_engine, delete, insert, select, table
    from sqlalchemy.pool import NullPool

    # By table names instead of MLflow's own classes, which may change.
    metrics, latest = (table(name, *map(column, COLUMNS[name])) for name in ("metrics", "latest_metrics"))

    def is_stale(points: "TableClause") -> "list[ColumnElement[bool]]":
        kept = [~points.c.key.startswith(prefix, autoescape=True) for prefix in keep]
        return [points.c.run_uuid == run_id, points.c.step > step, points.c.timestamp < before, *kept]

    with create_engine(uri, poolclass=NullPool).begin() as connection:
        if missing_columns(connection, ("metrics", "latest_metrics")):
            return False
        # In one transaction, so that readers see the old or the new curve, and a crash leaves the old one.
        connection.execute(delete(metrics).where(*is_stale(metrics)))
        # The UI shows `latest_metrics`, which has one row per metric and is recreated from the remaining points.
        names = connection.scalars(select(latest.c.key).where(*is_stale(latest))).all()
        connection.execute(delete(latest).where(*is_stale(latest)))
        for name in names:
            # MLflow's own order for choosing the latest point.
            newest_first = (metrics.c.step.desc(), metrics.c.timestamp.desc(), metrics.c.value.desc())
            points = select(metrics).where(metrics.c.run_uuid == run_id, metrics.c.key == name)
            newest = connection.execute(points.order_by(*newest_first).limit(1)).mappings().first()
            if newest is not None:
                connection.execute(insert(latest).values(**newest))
    return True


def delete_artifact(client: "MlflowClient", run_id: str, path: str) -> None:
    """Delete an artifact of a run; does nothing if there is none.

    MLflow itself uses this method of its stores only for deleting whole runs (`mlflow gc`).

    Raises:
        Exception: any error of the artifact store, including NotImplementedError.

    """
    client._tracking_client._get_artifact_repo(run_id).delete_artifacts(path)  # type: ignore[no-untyped-call]


def ui_path(experiment: str, run: str | None = None, view: str | None = None) -> str:
    """Address of a page relative to the UI's own, in the mode for model training.

    Without this mode in the address, MLflow 3.17 opens an experiment in its mode for language models, on an empty
    page.

    Args:
        experiment: The experiment's id; empty for the list of all experiments.
        run: The id of a run; None for the experiment's list of runs.
        view: Key of a saved view of the list.

    """
    path = f"#/experiments/{experiment}/runs" if experiment else "#/experiments"
    shared = f"&viewStateShareKey={quote(view)}" if view else ""
    return f"{path}{f'/{run}' if run else ''}?workflowType=machine_learning{shared}"


def artifact_path(run: str, artifact: str) -> str:
    """Address of an artifact relative to the UI's own, which a description shows as an image."""
    return f"get-artifact?path={quote(artifact, safe='')}&run_uuid={run}"


def saved_view(name: str, columns: Sequence[str], order_by: str, ascending: bool, query: str) -> str:
    """Value of an experiment tag VIEW_TAG + key that makes a saved view of the experiment's list of runs.

    Args:
        name: What the UI calls the view.
        columns: Columns after the run's name, such as "metrics.`val/acc`".
        order_by: The column to sort by.
        ascending: True for the smallest value first.
        query: MLflow's filter for the runs to show.

    """
    state: Mapping[str, Any] = {
        "selectedColumns": list(columns), "orderByKey": order_by, "orderByAsc": ascending, "searchFilter": query,
        "runsHiddenMode": "FIRST_20_RUNS",
    }  # fmt: skip
    # The format in which the UI's JavaScript stores the state in its own links.
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})
