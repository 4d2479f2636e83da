"""Signals only set a flag; whoever holds it looks when there is nothing to lose."""

import math
import os
import signal
import time
from types import FrameType
from typing import Any

from lit_mnist.errors import Interrupted
from lit_mnist.slurm import REQUEUE_CODE, allocation

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that clusters send before they end a job; our scripts ask for the first, submitit for the second."""

REPETITION = 1.0
"""Seconds within which the same signal counts once: SLURM sends SIGTERM to every process of a job, and the batch
script passes its own on."""


class SignalWatch:
    """Notes the signals that ask a process to end.

    A second signal changes nothing; the third ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._count = 0
        self._last = (0, -math.inf)
        """The last signal that was counted, and when."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        for number in WATCHED:
            self._previous[number] = signal.getsignal(number)
            # nohup leaves SIGHUP ignored, and means it; a shell does so to the SIGINT of whatever runs beside it.
            if number != signal.SIGHUP or self._previous[number] != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        # What runs after this block finds the handlers as they were before it.
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # In a signal handler, between any two instructions of the program: nothing here prints or takes a lock.
        now = time.monotonic()
        if number == self._last[0] and now - self._last[1] < REPETITION:
            return
        self._last = (number, now)
        self._count += 1
        # Not sys.exit, whose exception a library may catch.
        if self._count > 2:
            os._exit(exit_code(number))
        if self.received is None:
            self.received = number


def end_at_once() -> None:
    """End this process at a cluster's signal, until a `SignalWatch` is entered: nothing has begun yet.

    Imports take ten seconds, and several times as long on a busy machine. Without a handler, a warning that comes
    meanwhile would end the process with another exit code than the one that requeues the job; a handler that only
    notes it would let the warning pass, and the job's time limit with it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        # Not by print, which may be what the signal has interrupted.
        os.write(2, f"lit-mnist: stopped by {signal.Signals(number).name}\n".encode())
        os._exit(exit_code(number))

    for number in WARNINGS if allocation() is None else (*WARNINGS, signal.SIGTERM):
        signal.signal(number, end)


def exit_code(number: int) -> int:
    """Return the exit code of a process that the signal ended.

    It is 75 (`REQUEUE_CODE`) after a cluster's warning, and after SIGTERM inside a SLURM job: the work is saved,
    and the job should be started again. With 0 the cluster would take the work for done.
    """
    if number in WARNINGS or (number == signal.SIGTERM and allocation() is not None):
        return REQUEUE_CODE
    return 128 + number
