"""A thread that talks to the tracking store, so that training never waits for it."""

import contextlib
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
TRIES = 4
"""How often a flush tries, with 1, 2, 3, … seconds between."""


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
            UserError: the store still refuses something after several tries.
        """
        for attempt in range(TRIES):
            if (failure := self._deliver()) is None:
                return
            time.sleep(attempt + 1)
        raise UserError(f"the tracking store did not take all of run {self.run_id}: {failure}")

    def close(self) -> None:
        """Flush, and end the thread."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._sample()
        self.flush()

    def _work(self) -> None:
        # The first errands wait until training has started: they compete with it for the interpreter.
        while not self._stop.wait(self.interval):
            if self.system is not None and self.system.is_due():
                self._sample()
            self._deliver()

    def _sample(self) -> None:
        if self.system is not None:
            with contextlib.suppress(Exception):  # a machine that does not tell its load is no reason to stop
                self.send(self.system.sample())

    def _deliver(self) -> str | None:
        """Send all there is, in order; what fails stays for the next time, and its failure is returned."""
        with self._busy:
            while (job := self._next()) is not None:
                try:
                    job()
                except Exception as error:  # whatever it is, it must not end the thread
                    with self._lock:
                        self._jobs.insert(0, job)
                    return one_line(error)
        return None

    def _next(self) -> Callable[[], object] | None:
        """The oldest errand; where there is none, a batch of points."""
        with self._lock:
            if self._jobs:
                return self._jobs.pop(0)
            if not self._points:
                return None
            batch, self._points = self._points[:LARGEST_BATCH], self._points[LARGEST_BATCH:]
        return lambda: self.client.log_batch(self.run_id, metrics=batch)
