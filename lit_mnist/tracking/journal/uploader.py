"""The thread that sends a run's journal, so that training never waits for the store, even if it is unreachable."""

import contextlib
import math
import threading
import time
from collections.abc import Callable

from lit_mnist.errors import one_line
from lit_mnist.terminal import note, warn
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter
from lit_mnist.tracking.journal.system_metrics import SystemMetrics
from lit_mnist.tracking.liveness import HEARTBEAT_INTERVAL, touch_heartbeat
from lit_mnist.tracking.store import reason

SEND_INTERVAL = 3.0
"""Seconds between two batches; sending a batch of points in one call costs tens of milliseconds."""
LONGEST_PAUSE = 30.0
"""Longest pause in seconds between two attempts while the store does not answer."""
PATIENCE = 10.0
"""Seconds without progress after which the end of a run no longer waits for its store."""
SLOWEST_UPLOAD = 2e6
"""Bytes per second that are assumed as the minimum speed of a reachable store."""


class Uploader:
    """Sends a run's journal in the background, samples the machine's load, and runs background tasks.

    Args:
        journal: The run's entries.
        writer: Sends the entries to the store; None leaves them in the journal.
        store_name: The store's name in warnings.
        system: Samples the machine's load into the journal, if given.
        heartbeat: Send heartbeats to the run's folder and to the store.

    """

    def __init__(
        self,
        journal: Journal,
        writer: MLflowWriter | None,
        store_name: str = "",
        system: SystemMetrics | None = None,
        heartbeat: bool = False,
    ) -> None:
        self.journal, self.writer, self.store_name = journal, writer, store_name
        self.system, self.interval = system, SEND_INTERVAL
        self.away = False
        """True if the last attempt to send entries failed."""
        # The first heartbeat is sent at once, so that a run counts as alive from its start.
        self._next_heartbeat = time.monotonic() if heartbeat else math.inf
        self._tasks: list[Callable[[], object]] = []
        # Background tasks and samples run in the thread, or in the main thread at the end, but only one at a time.
        self._task_lock = threading.Lock()
        self._closing, self._done, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        # A daemon thread, so that a hanging request does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="lit-mnist-uploader", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], object]) -> None:
        """Run a slow task that writes to the journal in the thread; returns at once."""
        # Appending is atomic and needs no lock.
        self._tasks.append(task)

    def flush(self) -> None:
        """Complete all background tasks, and sample the machine's load for the last time."""
        self._run_tasks()
        if self.system is not None and self.system.samples_end:
            self._sample()
        self.system = None

    def close(self, patience: float = PATIENCE) -> bool:
        """Send the remaining entries, and end the thread.

        Args:
            patience: Seconds without progress after which the remaining entries are left in the journal.

        Returns:
            True if the store has accepted everything.

        """
        if self._thread.is_alive() and not self._abandoned.is_set():
            self._closing.set()
            # The deadline is extended whenever the sent position advances.
            position, deadline = -1, 0.0
            while not self._done.wait(0.2):
                if self.journal.sent != position:
                    position, deadline = self.journal.sent, time.monotonic() + patience
                # During the upload of a large file, the sent position does not advance.
                uploading = 0 if self.away or self.writer is None else self.writer.uploading
                if time.monotonic() > deadline + uploading / SLOWEST_UPLOAD:
                    break
            # From now on the thread neither prints nor writes anything, even if it is still waiting for the store.
            self._abandoned.set()
            self._run_tasks()
        return self.journal.is_sent()

    def _work(self) -> None:
        # The first tasks are delayed until training has started, since they compete for the interpreter.
        pause = self.interval
        while not self._abandoned.is_set():
            closing = self._closing.wait(pause)
            # Each round: heartbeat, tasks, sample, send.
            self._show_heartbeat()
            self._run_tasks()
            if not closing and self.system is not None and self.system.is_due():
                self._sample()
            if self._send():
                if closing:
                    self._done.set()
                    return
                pause = self.interval
            elif closing:
                self._abandoned.wait(1.0)  # try again until `close` runs out of patience
            else:
                # Longer pauses, so that not all runs contact a restarting server every three seconds.
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self) -> bool:
        """Send all entries; returns True if all of them were accepted."""
        if self.writer is None:
            return True
        try:
            self.writer.send(self._is_stopped)
        except Exception as error:  # each kind of store, and of artifact store, raises its own
            if not self.away and not self._abandoned.is_set():
                self.away = True
                warn(
                    f"the tracking store {self.store_name} does not take what it is sent ({reason(error)}):"
                    f" the run goes on, and what is unsent is kept in {self.journal.path};"
                    " it is sent when the store is back, or later by `lit-mnist sync`"
                )
            return False
        if self.away and not self._abandoned.is_set():
            self.away = False
            note(f"the tracking store {self.store_name} is back")
        return True

    def _is_stopped(self) -> bool:
        """True if nothing more may be sent; called after each request, so heartbeats go on during long sends."""
        if self._abandoned.is_set():
            return True
        self._show_heartbeat()
        return False

    def _show_heartbeat(self) -> None:
        if time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL
        with contextlib.suppress(Exception):  # a store that is away is reported by the next `_send`
            touch_heartbeat(self.journal.folder)
            if self.writer is not None:
                self.writer.send_heartbeat()

    def _run_tasks(self) -> None:
        with self._task_lock:
            while self._tasks:
                task = self._tasks.pop(0)
                try:
                    task()
                except Exception as error:  # a missing description must not end the training
                    warn(f"a part of the run's description is missing: {one_line(error)}")

    def _sample(self) -> None:
        # A failure to read the machine's load is ignored.
        with self._task_lock, contextlib.suppress(Exception):
            if self.system is not None and (points := self.system.sample()):
                self.journal.append({"kind": "metrics", "points": points})
