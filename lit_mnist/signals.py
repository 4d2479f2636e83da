"""Signal handling: handlers only set a flag, which the program checks where it can stop without losing work."""

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
"""Signals that clusters send before they end a job: SIGUSR1 for this project's scripts, SIGUSR2 for submitit's."""

REPETITION = 1.0
"""Seconds within which the same signal counts once: SLURM sends SIGTERM to every process of a job, and the batch
script passes its own on."""


class SignalWatch:
    """Records the signals that ask a process to end.

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
            # nohup ignores SIGHUP on purpose, so that stays. Shells also ignore SIGINT in background processes,
            # but there it must still end this process.
            if number != signal.SIGHUP or self._previous[number] != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A signal handler runs between any two instructions of the program, so this must not print or take a lock.
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
    """Let a cluster's signal end this process at once until a `SignalWatch` is entered: nothing needs saving yet.

    Imports take ten seconds, and several times as long on a busy machine. Without a handler, a warning signal
    during the imports would end the process with an exit code that does not requeue the job. With a handler that
    only sets a flag, the process could still be importing when the job reaches its time limit.
    """

    def end(number: int, frame: FrameType | None) -> None:
        # Not by print: the signal may have interrupted a print.
        os.write(2, f"lit-mnist: stopped by {signal.Signals(number).name}\n".encode())
        os._exit(exit_code(number))

    for number in WARNINGS if allocation() is None else (*WARNINGS, signal.SIGTERM):
        signal.signal(number, end)


def exit_code(number: int) -> int:
    """Return the exit code of a process that the signal ended.

    It is 75 (`REQUEUE_CODE`) after a cluster's warning, and after SIGTERM inside a SLURM job: the work is saved,
    and the job should be started again. With 0 the cluster would consider the work complete.
    """
    if number in WARNINGS or (number == signal.SIGTERM and allocation() is not None):
        return REQUEUE_CODE
    return 128 + number
