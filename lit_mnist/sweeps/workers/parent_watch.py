"""Tells a worker process when to begin, and when its parent has died."""

import os
import signal
import sys
import threading
import time

from lit_mnist.signals import SignalWatch

START = "start"
"""The line on a worker's standard input that lets it begin."""
SAVE_TIMEOUT = 120.0
"""Seconds that a worker has to save its trial when it has to end; after that it is killed."""


class ParentWatch:
    """A thread that reads this process's standard input, a pipe from the sweep or worker that started it.

    A line START lets the work begin. The end of the pipe means that the other process is dead, for whatever
    reason, since the system closes its end. The death of the parent process cannot be used, since the parent of a
    forked worker is the fork server.

    Args:
        signals: Receives a SIGTERM when the pipe ends, so that the work is saved and ends.

    """

    def __init__(self, signals: SignalWatch) -> None:
        self._signals = signals
        self._start = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self) -> None:
        """Return when the work may begin or a signal was received."""
        # With a time limit, because `SignalWatch` only records a signal, which does not end a wait.
        while not self._start.wait(0.2) and self._signals.received is None:
            pass

    def _run(self) -> None:
        # Ends with the pipe.
        for line in sys.stdin:
            if line.strip() == START:
                self._start.set()
        # An earlier signal takes precedence as the reason.
        if self._signals.received is None:
            self._signals.received = signal.SIGTERM
        self._start.set()
        # No other process would kill this one if it hangs and keeps its GPU. If it leads a process group, the
        # other ranks of a distributed training are killed too. This daemon thread ends early if the process ends
        # in time.
        time.sleep(SAVE_TIMEOUT)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)
