"""Heartbeats: how a worker shows workers on other machines that it is alive."""

import threading
import time
from typing import cast

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from lit_mnist.sweeps.search.optuna_private import trial_id
from lit_mnist.sweeps.study.leases import HEARTBEAT, HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, Leases, check_owner
from lit_mnist.sweeps.study.retry import RetryingStorage
from lit_mnist.sweeps.study.study import RUNNING, get_trials
from lit_mnist.terminal import note
from lit_mnist.tracking.store import reason

READS = 2000
"""Trials that all workers of a study together read in a second, to observe each other's heartbeats."""


class Heartbeats:
    """While entered, a thread sends heartbeats for a trial and ends the process if the trial was taken over.

    A storage that is a file gets none: workers there are on one machine and look each other up as processes. The
    journal file only grows, by about 30 MB a day with heartbeats of 8 workers.

    Args:
        leases: The worker's.
        trial: The trial that is leased to it.

    """

    def __init__(self, leases: Leases, trial: Trial) -> None:
        self.leases, self.trial = leases, trial
        self._end = threading.Event()
        self._next_look = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Heartbeats":
        if cast(RetryingStorage, self.leases.storage).engine is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # Waited for, because the trial may be released next: a heartbeat that then looks up its owner would find
        # another one, and end this process (`check_owner`).
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        # One note for an outage, not one every five seconds.
        count, is_noted = 0, False
        while not self._end.wait(HEARTBEAT_INTERVAL):
            count += 1
            try:
                if not self._send(count):
                    return
                self._observe_others()
                is_noted = False
            except UpdateFinishedTrialError:
                return  # the thread that trains has just ended the trial
            except Exception as error:
                # Whatever it is, this thread must not die of it in silence: the worker would be taken for dead. It
                # goes on, and finds out with the next heartbeat that arrives whether the trial was taken over.
                if not is_noted:
                    note(f"no heartbeat of trial {self.trial.number} can be sent: {reason(error)}; trying again")
                is_noted = True

    def _send(self, count: int) -> bool:
        """Store a heartbeat; return False if the trial has ended."""
        # Without the study's lock, which another worker may hold for long. Between the two calls somebody may take
        # the trial over; a heartbeat in an attribute beside `owner` does not undo that, and names its process.
        leases, number = self.leases, trial_id(self.trial)
        if check_owner(leases.storage, self.trial, leases.owner).state != RUNNING:
            return False
        leases.storage.set_trial_user_attr(number, HEARTBEAT, {"process": leases.owner["process"], "count": count})
        return True

    def _observe_others(self) -> None:
        """Look at the other workers' heartbeats now and then.

        A worker that looked at them only when it needs a trial would have to wait for HEARTBEAT_TIMEOUT each time.
        With n workers each look reads n trials, so that the time between two looks is n squared over READS.
        """
        # Called with each heartbeat; what it reads of the others is only needed now and then.
        if time.monotonic() < self._next_look:
            return
        running = [trial for trial in get_trials(self.leases.study) if trial.state == RUNNING]
        for trial in running:
            self.leases.owners.is_dead(trial)
        self._next_look = time.monotonic() + max(HEARTBEAT_TIMEOUT / 2, len(running) ** 2 / READS)
