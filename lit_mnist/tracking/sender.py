"""A thread that talks to the tracking store, so that training never waits for it."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lit_mnist.errors import UserError
from lit_mnist.tracking.store import one_line
from lit_mnist.tracking.system import SystemMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

LARGEST_BATCH = 1000
"""Points that MLflow takes in one call."""


class Sender:
    """Sends a run's metrics in batches and does its other errands, in order, behind the training's back.

    Args:
        client: Of the store.
        run_id: The run that everything belongs to.
        system: Whether to sample the machine's load as `system/…` metrics.
        interval: Seconds between two batches.

    """

    def __init__(self, client: "MlflowClient", run_id: str, system: bool = True, interval: float = 3.0) -> None:
        self.client, self.run_id, self.interval = client, run_id, interval
        self.system = SystemMetrics() if system else None
        self._points: list[Metric] = []
        self._jobs: list[Callable[[], object]] = []
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lit-mnist-sender", daemon=True)
        self._thread.start()

    def send(self, points: "list[Metric]") -> None:
        """Take metric points to be sent; returns at once."""
        with self._lock:
            self._points += points

    def submit(self, job: Callable[[], object]) -> None:
        """Take an errand, to be done after those before it; returns at once."""
        with self._lock:
            self._jobs.append(job)

    def flush(self) -> None:
        """Return when all that was taken has been sent.

        Raises:
            UserError: the store refused something.

        """
        self._deliver()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise UserError(f"the tracking store did not take all of run {self.run_id}: {failure}")

    def close(self) -> None:
        """Flush, and end the thread."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            if self.system is not None:
                self.send(self.system.sample())
        self.flush()

    def _work(self) -> None:
        # The first errands wait until training has started: they compete with it for the interpreter.
        while not self._stop.wait(self.interval):
            if self.system is not None and self.system.is_due():
                self.send(self.system.sample())
            self._deliver()

    def _deliver(self) -> None:
        with self._busy:
            with self._lock:
                points, self._points = self._points, []
                jobs, self._jobs = self._jobs, []
            batches = [points[i : i + LARGEST_BATCH] for i in range(0, len(points), LARGEST_BATCH)]
            for job in [*jobs, *(self._batch_job(batch) for batch in batches)]:
                self._attempt(job)

    def _batch_job(self, batch: "list[Metric]") -> Callable[[], object]:
        return lambda: self.client.log_batch(self.run_id, metrics=batch)

    def _attempt(self, job: Callable[[], object], tries: int = 3) -> None:
        for attempt in range(tries):
            try:
                job()
                return
            except Exception as error:  # whatever it is, it must not end the thread
                if attempt == tries - 1:
                    self._failure = one_line(error)
                time.sleep(0.2 * (attempt + 1))
