"""Heartbeats, by which workers on other machines know that a worker is alive."""

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
"""Trials that all workers of a study together read per second, to observe each other's heartbeats."""


class Heartbeats:
    """While entered, a thread sends heartbeats for a trial, and ends the process if the trial was taken over.

    None are sent to a storage that is a file: its workers are on one machine and can look up each other's
    processes, and the journal file would grow by about 30 MB a day with heartbeats of 8 workers.

    Args:
        leases: The worker's leases.
        trial: The trial that is leased to the worker.

    """

    def __init__(self, leases: Leases, trial: Trial) -> None:
        self.leases, self.trial = leases, trial
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Heartbeats":
        if cast(RetryingStorage, self.leases.storage).engine is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # Wait for the thread, because the trial may be released next: a later heartbeat would find another owner
        # and end this process (`check_owner`).
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        leases, process = self.leases, self.leases.owner["process"]
        count, next_look = 0, time.monotonic()
        is_noted = False  # one note per outage, not one every five seconds
        while not self._end.wait(HEARTBEAT_INTERVAL):
            count += 1
            try:
                # Without the study's lock, which another worker may hold for a long time. Between the two calls
                # the trial may be taken over. The heartbeat does not undo this, since it is not part of the
                # attribute `owner`, and it names its process.
                if check_owner(leases.storage, self.trial, leases.owner).state != RUNNING:
                    return
                beat = {"process": process, "count": count}
                leases.storage.set_trial_user_attr(trial_id(self.trial), HEARTBEAT, beat)
                # Also observe the other workers' heartbeats from time to time: otherwise a worker that needs a
                # trial would first have to watch for HEARTBEAT_TIMEOUT. With n workers, each observation reads n
                # trials, so the interval is n squared over READS.
                if time.monotonic() >= next_look:
                    running = [trial for trial in get_trials(leases.study) if trial.state == RUNNING]
                    for trial in running:
                        leases.owners.is_dead(trial)
                    next_look = time.monotonic() + max(HEARTBEAT_TIMEOUT / 2, len(running) ** 2 / READS)
                is_noted = False
            except UpdateFinishedTrialError:
                return  # the training thread has just ended the trial
            except Exception as error:
                # This thread must not end because of an error, or the worker would be considered dead. The next
                # heartbeat that succeeds shows whether the trial was taken over.
                if not is_noted:
                    note(f"no heartbeat of trial {self.trial.number} can be sent: {reason(error)}; trying again")
                is_noted = True
