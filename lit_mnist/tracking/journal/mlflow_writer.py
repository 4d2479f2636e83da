"""Sends journal entries to the tracking store, and decides which errors are permanent."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lit_mnist.errors import UserError
from lit_mnist.terminal import warn
from lit_mnist.tracking.journal.journal import DAMAGED, Entry, Journal
from lit_mnist.tracking.journal.points import NEVER_REPLACED, REWOUND, Rewind, add_to_tag, drop_replaced
from lit_mnist.tracking.liveness import heartbeat_tag
from lit_mnist.tracking.mlflow_private import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAMS_TAGS_PER_BATCH,
    delete_artifact,
    delete_points,
)
from lit_mnist.tracking.store import reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

TEMPORARY_STATUS = {401, 403, 404, 408, 425, 429}
"""HTTP status codes that a login, a restored run or time may change; a proxy may answer 404 without its server."""


class Refused(Exception):  # noqa: N818 - handled here, never shown as an error
    """The entry can never be sent."""


class MLflowWriter:
    """Sends the entries of a journal to one run of a store, in order.

    Args:
        client: Client of the store.
        run_id: The run's id there.
        journal: The journal with the entries.

    """

    def __init__(self, client: "MlflowClient", run_id: str, journal: Journal) -> None:
        self.client, self.run_id, self.journal = client, run_id, journal
        self.counts: Counter[str] = Counter()
        """How many items of each kind were sent."""
        self.uploading = 0
        """Size in bytes of the file that is being uploaded; 0 while none is."""
        self._warned: set[str] = set()

    def send(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Send all unsent entries.

        Args:
            stopped: Called after each request; once it returns True, nothing more is sent or recorded as sent.

        Raises:
            Exception: any error of the store that may be temporary; the next call continues with the same entry.

        """
        # In the order of the journal, so that a status is not set before earlier metrics are sent.
        for end, entry in self._batches():
            kind = str(entry.get("kind"))
            if kind in ("metrics", "params", "tags"):
                limit = MAX_METRICS_PER_BATCH if kind == "metrics" else MAX_PARAMS_TAGS_PER_BATCH
                items = entry.get("points", []) if kind == "metrics" else list(entry.get("values", {}).items())
                for i in range(0, len(items), limit):
                    self._send_accepted(kind, items[i : i + limit])
            else:
                self._send_accepted(kind, [entry])
            # Before `advance`: after `Uploader.close` has given up, this thread must not change the sent position.
            if stopped():
                return
            self.journal.advance(end)

    def send_heartbeat(self) -> None:
        """Set the run's heartbeat tag directly, since a delayed heartbeat in the journal would be useless."""
        for name, value in heartbeat_tag().items():
            self.client.set_tag(self.run_id, name, value)

    def _batches(self) -> Iterator[tuple[int, Entry]]:
        """Yield the unsent entries and their ends; consecutive metrics are joined up to what one call takes.

        Points that a later rewind replaces are left out: a store that cannot delete points never gets them.
        """
        # All rewinds of the journal, including those that come after the points.
        rewinds = self.journal.rewinds()
        points: list[Any] = []
        last = 0
        for end, entry in self.journal.entries(self.journal.sent):
            new = entry.get("points") if entry.get("kind") == "metrics" else None
            # Other entries end the batch, so that the order is kept.
            if last and (new is None or len(points) + len(new) > MAX_METRICS_PER_BATCH):
                yield last, {"kind": "metrics", "points": points}
                points, last = [], 0
            if new is None:
                yield end, entry
            else:
                points += drop_replaced(new, rewinds) if rewinds else new
                last = end
        if last:
            yield last, {"kind": "metrics", "points": points}

    def _send_accepted(self, kind: str, items: list[Any]) -> None:
        """Send items of one kind; if the store refuses them, find the refused items by bisection."""
        try:
            self._send(kind, items)
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(items) > 1:
                # One bad point among 1,000 costs about 20 requests, and the other 999 are stored.
                half = len(items) // 2
                self._send_accepted(kind, items[:half])
                self._send_accepted(kind, items[half:])
                return
            why = reason(error)
            with self.journal.refused.open("a") as file:
                file.write(json.dumps({"kind": kind, "entry": items[0], "reason": why}) + "\n")
            if why not in self._warned:
                self._warned.add(why)
                warn(f"the tracking store refuses a part of run {self.run_id} ({kind}): {why};"
                     f" it stays in {self.journal.refused}")  # fmt: skip
        else:
            self.counts["artifacts" if kind in ("text", "file") else kind] += len(items)

    def _send(self, kind: str, items: list[Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        entry = items[0]
        match kind:
            case "metrics":
                # With the original time, by which MLflow recognises repeated points.
                points = [Metric(name, value, at, step) for name, value, at, step in items]
                self.client.log_batch(self.run_id, metrics=points)
            case "params":
                self.client.log_batch(self.run_id, params=[Param(name, value) for name, value in items])
            case "tags":
                self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in items])
            case "text":
                self.client.log_text(self.run_id, entry["text"], entry["path"])
            case "file":
                self._send_file(entry)
            case "delete":
                self._delete(entry["path"])
            case "dataset":
                self._send_dataset(entry)
            case "status" if entry["status"] == "RUNNING":
                self.client.update_run(self.run_id, "RUNNING")
            case "status":
                # The end time in milliseconds from the journal, since the run may have ended long before.
                self.client.set_terminated(self.run_id, entry["status"], entry["end_time"])
            case "rewind":
                self._send_rewind(Rewind(entry["step"], entry["time"]))
            case _ if kind == DAMAGED:
                raise Refused("the line in the file cannot be parsed")
            case _:
                raise Refused(f"entries of the kind {kind!r} are unknown")

    def _send_file(self, entry: Entry) -> None:
        path = self.journal.folder / entry["path"]
        try:
            # `Uploader.close` waits longer while a large file is being sent.
            self.uploading = path.stat().st_size
            self.client.log_artifact(self.run_id, str(path), entry["folder"])
        except FileNotFoundError:
            if path.exists():
                raise
            # The file was deleted after it was logged.
            raise Refused(f"the file {path} does not exist any more") from None
        finally:
            self.uploading = 0

    def _delete(self, path: str) -> None:
        try:
            delete_artifact(self.client, self.run_id, path)
        except Exception as error:
            if not (is_refusal(error) or isinstance(error, NotImplementedError)):
                raise  # it may be temporary; otherwise the store cannot delete and keeps the artifact

    def _send_dataset(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, profile = entry["name"], json.dumps(entry["profile"])
        # MLflow identifies a dataset by name and digest; the source is not a real address.
        dataset = Dataset(name, entry["digest"], "local", json.dumps({"name": name}), profile=profile)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            self.client.log_inputs(self.run_id, inputs)
        except Exception as error:
            # MLflow looks up the dataset and then inserts it. If another run has inserted it in between, MLflow
            # 3.1 to 3.17 report a bad request, and the second attempt succeeds.
            if not is_refusal(error):
                raise
            self.client.log_inputs(self.run_id, inputs)

    def _send_rewind(self, rewind: Rewind) -> None:
        """Delete the points that the rewind replaces; if that is impossible, set a tag for this project's code."""
        # Safe to repeat after a crash, since new points have later times than the rewind.
        uri = self.client.tracking_uri
        if not delete_points(uri, self.run_id, rewind.step, rewind.time, NEVER_REPLACED):
            tags = self.client.get_run(self.run_id).data.tags
            self.client.set_tag(self.run_id, REWOUND, add_to_tag(tags, rewind))


def is_refusal(error: Exception) -> bool:
    """True if the error is permanent: the store will always refuse the same request."""
    import requests
    from mlflow.exceptions import MlflowException

    # Errors of a store have an HTTP status; other exceptions are judged by their type.
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        return isinstance(error, (Refused, KeyError, TypeError, ValueError)) and not isinstance(error, OSError)
    # MLflow reports a damaged database as a bad request.
    return 400 <= status < 500 and status not in TEMPORARY_STATUS and ".DatabaseError)" not in str(error)


def send_now(writer: MLflowWriter, store_name: str) -> None:
    """Send all unsent entries of a journal.

    Raises:
        UserError: the store does not accept them now; unsent entries stay in the journal.

    """
    try:
        writer.send()
    except Exception as error:  # each kind of store, and of artifact store, has its own exceptions
        raise UserError(
            f"the tracking store {store_name} does not take all of run {writer.run_id}: {reason(error)};"
            f" {writer.journal.waiting()} entries wait in {writer.journal.path}"
        ) from None
