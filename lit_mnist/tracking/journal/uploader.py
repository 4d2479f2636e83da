"""A thread that talks to the tracking store, so that training never waits for it, not even when it is gone."""

import contextlib
import math
import threading
import time
from collections.abc import Callable

from lit_mnist.terminal import note, warn
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter
from lit_mnist.tracking.journal.system_metrics import SystemMetrics
from lit_mnist.tracking.liveness import HEARTBEAT_INTERVAL, beat
from lit_mnist.tracking.store import one_line, reason

LONGEST_PAUSE = 30.0
"""Seconds between two tries at most, while the store does not answer."""
PATIENCE = 10.0
"""Seconds without progress after which the end of a run waits no longer for its store."""
SLOWEST_UPLOAD = 2e6
"""Bytes a second that a store which answers is trusted to take."""


class Uploader:
    """Sends a run's spool behind the training's back, and does its slow errands.

    Args:
        spool: Where the run's entries are.
        delivery: The way from there to the store; None leaves everything in the spool.
        uri: What the store is called in warnings.
        system: Samples the machine's load into the spool, if given.
        interval: Seconds between two deliveries.
        heartbeat: Whether to show, in the run's folder and in the store, that the run's process is alive.

    """

    def __init__(
        self,
        spool: Journal,
        delivery: MLflowWriter | None,
        uri: str = "",
        system: SystemMetrics | None = None,
        interval: float = 3.0,
        heartbeat: bool = False,
    ) -> None:
        self.spool, self.delivery, self.uri, self.system, self.interval = spool, delivery, uri, system, interval
        self._next_beat = time.monotonic() if heartbeat else math.inf
        self.away = False
        """Whether the store did not take what it was last sent."""
        self._errands: list[Callable[[], object]] = []
        self._at_errands = threading.Lock()
        self._closing, self._done, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="lit-mnist-sender", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], object]) -> None:
        """Take a slow errand that writes to the spool, to be done in the thread; returns at once."""
        self._errands.append(work)

    def flush(self) -> None:
        """Return when every errand is done, and the machine's load sampled for the last time."""
        self._do_errands()
        self._sample()
        self.system = None

    def close(self, patience: float = PATIENCE) -> bool:
        """Send what is left, and end the thread; returns whether the store has taken everything.

        Args:
            patience: Seconds without progress after which the rest is left in the spool.

        """
        if self._thread.is_alive() and not self._abandoned.is_set():
            self._closing.set()
            position, deadline = -1, 0.0
            while not self._done.wait(0.2):
                if self.spool.sent != position:
                    position, deadline = self.spool.sent, time.monotonic() + patience
                if time.monotonic() > deadline + self._upload_time():
                    break
            # From here on the thread neither prints nor writes, wherever it hangs.
            self._abandoned.set()
            self._do_errands()
        return self.spool.is_sent()

    def _upload_time(self) -> float:
        return 0 if self.away or self.delivery is None else self.delivery.upload / SLOWEST_UPLOAD

    def _work(self) -> None:
        # The first errands wait until training has started: they compete with it for the interpreter.
        pause = self.interval
        while not self._abandoned.is_set():
            closing = self._closing.wait(pause)
            self._beat()
            self._do_errands()
            if not closing and self.system is not None and self.system.is_due():
                self._sample()
            if self._deliver():
                if closing:
                    self._done.set()
                    return
                pause = self.interval
            elif closing:
                self._abandoned.wait(1.0)
            else:
                pause = min(2 * pause, LONGEST_PAUSE)

    def _do_errands(self) -> None:
        with self._at_errands:
            while self._errands:
                work = self._errands.pop(0)
                try:
                    work()
                except Exception as error:  # whatever it is, it must not end the training
                    warn(f"a part of the run's description is missing: {one_line(error)}")

    def _sample(self) -> None:
        # A machine that does not tell its load is no reason to stop.
        with self._at_errands, contextlib.suppress(Exception):
            if self.system is not None and (points := self.system.sample()):
                self.spool.append({"kind": "metrics", "points": points})

    def _beat(self) -> None:
        """Show that the process is alive, if it is time."""
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + HEARTBEAT_INTERVAL
        with contextlib.suppress(Exception):  # of a store that is away the next delivery will tell
            beat(self.spool.folder)
            if self.delivery is not None:
                self.delivery.beat()

    def _is_stopped(self) -> bool:
        """Whether to send nothing more; asked after each call of the store, so that long deliveries beat too."""
        if self._abandoned.is_set():
            return True
        self._beat()
        return False

    def _deliver(self) -> bool:
        """Send what there is; returns whether all of it was taken."""
        if self.delivery is None:
            return True
        try:
            self.delivery.deliver(self._is_stopped)
        except Exception as error:  # each kind of store, and of artifact store, has its own
            if not self.away and not self._abandoned.is_set():
                self.away = True
                warn(
                    f"the tracking store {self.uri} does not take what it is sent ({reason(error)}):"
                    f" the run goes on, and what is unsent is kept in {self.spool.path};"
                    " it is sent when the store is back, or submit by `lit-mnist sync`"
                )
            return False
        if self.away and not self._abandoned.is_set():
            self.away = False
            note(f"the tracking store {self.uri} is back")
        return True
