"""How a process that works for another one learns that it may begin, and that the other one is gone."""

import signal
import sys
import threading

from lit_mnist.signals import SignalWatch

GO = "go"
"""The line that says to begin."""


class ParentWatch:
    """The pipe from the supervisor: a line says to go, and its end says that the supervisor is gone.

    Args:
        watch: Where that is noted as a signal to end.

    """

    def __init__(self, watch: SignalWatch) -> None:
        self._watch = watch
        self._go = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self) -> None:
        """Return when the study is ready, or a signal came."""
        while not self._go.wait(0.2) and self._watch.received is None:
            pass

    def _read(self) -> None:
        for line in sys.stdin:
            if line.strip() == GO:
                self._go.set()
        if self._watch.received is None:
            self._watch.received = signal.SIGTERM
        self._go.set()
