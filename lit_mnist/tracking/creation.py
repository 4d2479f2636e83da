"""How a run comes to be, in a store or without one."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mnist.tracking.folder import Record
from lit_mnist.tracking.liveness import heartbeat_tag
from lit_mnist.tracking.process import shown_arguments, this_boot, this_host, this_process
from lit_mnist.tracking.provenance import user_name
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.store import Store, connect, experiment_id, local_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

OFFLINE_ID = "offline_id"
"""The tag that holds the id of a run from before a store knew it."""


def source_tags() -> dict[str, str]:
    """Who works on a run, with which command, where."""
    return {
        "mlflow.source.name": " ".join(["lit-mnist", *shown_arguments()]),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
        **process_tags(),
    }


def process_tags() -> dict[str, str]:
    """Which process works on a run: what tells one that was killed from one that lives."""
    return {"host": this_host(), "process": this_process(), "boot": this_boot()}


def recorded_uri(store: Store) -> str | None:
    """What `run.json` says of the store: None for the project's own, else the URI without a password."""
    return None if store.uri == local_uri(store.home) else store.name


def create(
    store: Store, experiment: str, name: str | None, tags: Mapping[str, str]
) -> "tuple[Record, MlflowClient]":
    """A new run in the store, RUNNING, that has its tags from its first moment on.

    Raises:
        UserError: the store cannot be opened.

    """
    client = connect(store)
    store.home.mkdir(parents=True, exist_ok=True)
    tags = {**source_tags(), **heartbeat_tag(), **tags}
    info = client.create_run(experiment_id(client, store, experiment), run_name=name, tags=tags).info
    record = Record(info.run_id, experiment, info.run_name, recorded_uri(store), artifact_uri=info.artifact_uri)
    record.start_time = info.start_time
    return record, client


def create_offline(experiment: str, name: str | None) -> Record:
    """A new run that no store knows yet."""
    return Record(uuid.uuid4().hex, experiment, name, offline=True)


def adopt(client: "MlflowClient", store: Store, folder: Path, record: Record) -> Path:
    """Make an offline run one of the store's, whose id its folder takes; returns the folder's new path.

    A crash on the way leaves nothing that the next call does not mend.
    """
    if record.offline:
        found = _find_adopted(client, record.id) or client.create_run(
            experiment_id(client, store, record.experiment),
            start_time=record.start_time,
            tags={OFFLINE_ID: record.id},
            run_name=record.name,
        )
        record.offline_id, record.id, record.offline = record.id, found.info.run_id, False
        record.uri, record.artifact_uri = recorded_uri(store), found.info.artifact_uri
        record.write(folder)
    target = store.run_folder(record.id)
    if folder != target:
        folder.rename(target)
    return target


def _find_adopted(client: "MlflowClient", offline_id: str) -> "Run | None":
    return next(search_runs(client, f"tags.{OFFLINE_ID} = '{offline_id}'", limit=1, deleted=True), None)
