"""How a process learns that it may begin to work, and that the process that it works for is dead."""

import os
import signal
import sys
import threading
import time

from lit_mnist.signals import SignalWatch

START = "start"
"""The line, written to a worker's standard input, with which it begins to work."""
SAVE_TIMEOUT = 120.0
"""Seconds that a worker has to save its trial once it was told to end; after that it is killed."""


class ParentWatch:
    """A thread that reads this process's standard input, a pipe from the process that it works for.

    A line START lets the work begin. The end of the pipe means that the other process is dead, however it died:
    the system closes its end. Signals cannot tell this, since the parent of a forked worker is the fork server.

    Args:
        signals: Gets a SIGTERM when the pipe ends, so that the work is saved and ends.

    """

    def __init__(self, signals: SignalWatch) -> None:
        self._signals = signals
        self._start = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self) -> None:
        """Return when the work may begin or a signal has come."""
        # With a time limit, because a signal that is only noted does not end a wait.
        while not self._start.wait(0.2) and self._signals.received is None:
            pass

    def _run(self) -> None:
        # Ends with the pipe.
        for line in sys.stdin:
            if line.strip() == START:
                self._start.set()
        # A signal that has come before is the reason to be reported.
        if self._signals.received is None:
            self._signals.received = signal.SIGTERM
        self._start.set()
        # Nobody is left to kill this process if it hangs, and to free its GPU. As the leader of its process group
        # it takes the other ranks of a distributed training with it. A process that ends in time ends this thread,
        # too.
        time.sleep(SAVE_TIMEOUT)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)
