"""From the spool to the tracking store: what is sent how, and what a store will never take."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mnist.errors import UserError
from lit_mnist.terminal import warn
from lit_mnist.tracking.journal.journal import DAMAGED, Entry, Journal
from lit_mnist.tracking.liveness import heartbeat_tag
from lit_mnist.tracking.store import reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

LARGEST_BATCH = 1000
"""Points that MLflow takes in one call."""
MOST_TEXTS = 100
"""Parameters, or tags, that MLflow takes in one call."""
MAY_PASS = {401, 403, 404, 408, 425, 429}
"""Answers that a login, a restored run or time may change; a proxy says 404 while its server is away."""


class Refused(Exception):  # noqa: N818 - an answer, and one that is dealt with
    """An entry that cannot ever be sent."""


class MLflowWriter:
    """Sends a spool's entries to one run of one store, in order.

    Args:
        client: Of the store.
        run_id: The run's id there.
        spool: Where the entries are.

    """

    def __init__(self, client: "MlflowClient", run_id: str, spool: Journal) -> None:
        self.client, self.run_id, self.spool = client, run_id, spool
        self.tally: Counter[str] = Counter()
        """How many of each kind were sent."""
        self.upload = 0
        """Bytes of the file that is being sent."""
        self._reasons: set[str] = set()

    def deliver(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Send what has not been sent; raises what the store raises if that may pass.

        Args:
            stopped: Asked after each call of the store; once it says so, nothing more is sent or remembered.

        """
        for end, entry in _merged(self.spool.entries(self.spool.sent)):
            self._send(entry)
            if stopped():
                return
            self.spool.advance(end)

    def beat(self) -> None:
        """Set the run's heartbeat, past the spool: an old one is of no use to anybody."""
        for name, value in heartbeat_tag().items():
            self.client.set_tag(self.run_id, name, value)

    def _send(self, entry: Entry) -> None:
        kind = str(entry.get("kind"))
        if kind in ("metrics", "params", "tags"):
            limit = LARGEST_BATCH if kind == "metrics" else MOST_TEXTS
            items = entry.get("points") or list(entry.get("values", {}).items())
            for i in range(0, len(items), limit):
                self._tell(kind, items[i : i + limit])
        else:
            self._tell(kind, [entry])

    def _tell(self, kind: str, items: list[Any]) -> None:
        """Send items of one kind; of those that are refused together, all but the culprits."""
        try:
            self._call(kind, items)
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(items) == 1:
                self._refuse(kind, items[0], error)
                return
            half = len(items) // 2
            self._tell(kind, items[:half])
            self._tell(kind, items[half:])
        else:
            self.tally["artifacts" if kind in ("text", "file") else kind] += len(items)

    def _call(self, kind: str, items: list[Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if kind == "metrics":
            self.client.log_batch(self.run_id, metrics=[Metric(n, v, at, step) for n, v, at, step in items])
        elif kind == "params":
            self.client.log_batch(self.run_id, params=[Param(name, value) for name, value in items])
        elif kind == "tags":
            self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in items])
        elif kind == DAMAGED:
            raise Refused("a line of the file does not read")
        else:
            single = {"text": self._text, "file": self._file, "dataset": self._dataset, "status": self._status}
            single[kind](items[0])

    def _text(self, entry: Entry) -> None:
        self.client.log_text(self.run_id, entry["text"], entry["path"])

    def _file(self, entry: Entry) -> None:
        path = self.spool.folder / entry["path"]
        try:
            self.upload = path.stat().st_size
            self.client.log_artifact(self.run_id, str(path), entry["folder"])
        except FileNotFoundError:
            if path.exists():
                raise
            raise Refused(f"there is no file {path} any more") from None
        finally:
            self.upload = 0

    def _dataset(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, profile = entry["name"], json.dumps(entry["profile"])
        dataset = Dataset(name, entry["digest"], "local", json.dumps({"name": name}), profile=profile)
        context = InputTag("mlflow.data.context", "training")
        try:
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])
        except Exception as error:
            # MLflow looks for the dataset and adds it; another run may have added it between.
            if not is_refusal(error):
                raise
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])

    def _status(self, entry: Entry) -> None:
        if entry["status"] == "RUNNING":
            self.client.update_run(self.run_id, "RUNNING")
        else:
            self.client.set_terminated(self.run_id, entry["status"], entry["end_time"])

    def _refuse(self, kind: str, item: Any, error: Exception) -> None:
        why = reason(error)
        with self.spool.refused.open("a") as file:
            file.write(json.dumps({"kind": kind, "entry": item, "reason": why}) + "\n")
        if why not in self._reasons:
            self._reasons.add(why)
            warn(f"the tracking store refuses a part of run {self.run_id} ({kind}): {why};"
                 f" it stays in {self.spool.refused}")  # fmt: skip


def is_refusal(error: Exception) -> bool:
    """Whether the store would say the same for ever."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        return isinstance(error, (Refused, KeyError, TypeError, ValueError)) and not isinstance(error, OSError)
    # MLflow calls a damaged database a bad request.
    return 400 <= status < 500 and status not in MAY_PASS and ".DatabaseError)" not in str(error)


def deliver_now(delivery: MLflowWriter, uri: str) -> None:
    """Send all that a spool has.

    Raises:
        UserError: the store does not take it now; what is left stays in the spool.

    """
    try:
        delivery.deliver()
    except Exception as error:  # each kind of store, and of artifact store, has its own
        raise UserError(
            f"the tracking store {uri} does not take all of run {delivery.run_id}: {reason(error)};"
            f" {delivery.spool.waiting()} entries wait in {delivery.spool.path}"
        ) from None


def _merged(entries: Iterable[tuple[int, Entry]]) -> Iterator[tuple[int, Entry]]:
    """The entries, metrics that follow on each other made one as far as a call takes them."""
    points: list[Any] = []
    last = 0
    for end, entry in entries:
        new = entry.get("points") if entry.get("kind") == "metrics" else None
        if points and (new is None or len(points) + len(new) > LARGEST_BATCH):
            yield last, {"kind": "metrics", "points": points}
            points = []
        if new is None:
            yield end, entry
        else:
            points.extend(new)
            last = end
    if points:
        yield last, {"kind": "metrics", "points": points}


def relative(path: Path, folder: Path) -> str:
    """How an entry names a file: from the run's folder where it lies inside, so that the folder can be moved."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
