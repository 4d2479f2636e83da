"""The thread that sends a run's journal, so that training never waits for the store, even if that is gone."""

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
"""Seconds between two times of sending: one call takes a batch of points, and costs tens of milliseconds."""
LONGEST_PAUSE = 30.0
"""Longest pause in seconds between two attempts while the store does not answer."""
PATIENCE = 10.0
"""Seconds without progress after which the end of a run no longer waits for its store."""
SLOWEST_UPLOAD = 2e6
"""Bytes per second that a store which answers is assumed to take at least."""


class Uploader:
    """Sends a run's journal in the background, samples the machine's load, and runs background tasks.

    Args:
        journal: The run's entries.
        writer: Sends them to the store; None leaves everything in the journal.
        store_name: How warnings call the store.
        system: Samples the machine's load into the journal, if given.
        heartbeat: Show, in the run's folder and in the store, that the run's process is alive.

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
        """True if the store did not take what it was last sent."""
        # The first one at once: a run counts as alive from its start.
        self._next_heartbeat = time.monotonic() if heartbeat else math.inf
        self._tasks: list[Callable[[], object]] = []
        # Background tasks and samples run in the thread, or in the main thread once the run ends: one at a time.
        self._task_lock = threading.Lock()
        self._closing, self._done, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        # A daemon: a request that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="lit-mnist-uploader", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], object]) -> None:
        """Run a slow task that writes to the journal in the thread; returns at once."""
        # Appending is atomic; the lock is for who runs them.
        self._tasks.append(task)

    def flush(self) -> None:
        """Return when every background task is done, and the machine's load sampled for the last time."""
        self._run_tasks()
        if self.system is not None and self.system.samples_end:
            self._sample()
        self.system = None

    def close(self, patience: float = PATIENCE) -> bool:
        """Send what is left, and end the thread.

        Args:
            patience: Seconds without progress after which the rest is left in the journal.

        Returns:
            True if the store has accepted everything.

        """
        if self._thread.is_alive() and not self._abandoned.is_set():
            self._closing.set()
            # Any progress of the journal's mark starts the patience anew.
            position, deadline = -1, 0.0
            while not self._done.wait(0.2):
                if self.journal.sent != position:
                    position, deadline = self.journal.sent, time.monotonic() + patience
                # The upload of a large file makes no progress in the journal until it is complete.
                uploading = 0 if self.away or self.writer is None else self.writer.uploading
                if time.monotonic() > deadline + uploading / SLOWEST_UPLOAD:
                    break
            # From here on the thread neither prints nor writes anything, wherever it hangs.
            self._abandoned.set()
            self._run_tasks()
        return self.journal.is_sent()

    def _work(self) -> None:
        # The first tasks wait until training has started: they compete with it for the interpreter.
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
                # A server that restarts is not met by all runs at once, every three seconds.
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self) -> bool:
        """Send what there is; returns True if all of it was accepted."""
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
        # A machine whose load cannot be read is no reason to stop.
        with self._task_lock, contextlib.suppress(Exception):
            if self.system is not None and (points := self.system.sample()):
                self.journal.append({"kind": "metrics", "points": points})
