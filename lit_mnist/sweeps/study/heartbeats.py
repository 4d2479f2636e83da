"""Heartbeats: how a worker shows workers on other machines that it is alive."""

import os
import threading

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial
from sqlalchemy.exc import SQLAlchemyError

from lit_mnist.sweeps.search.optuna_private import trial_id
from lit_mnist.sweeps.study.leases import HEARTBEAT_INTERVAL, OWNER, Leases
from lit_mnist.sweeps.study.locks import study_lock
from lit_mnist.sweeps.study.retry import StorageGoneError
from lit_mnist.sweeps.study.study import RUNNING, get_trials
from lit_mnist.terminal import note

LEASE_LOST = 3
"""Exit code of a worker whose trial another worker has taken over."""


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
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Heartbeats":
        if getattr(self.leases.storage, "server", None) is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        beat = 0
        while not self._end.wait(HEARTBEAT_INTERVAL):
            beat += 1
            try:
                if not self._send(beat):
                    return
            except (StorageGoneError, UpdateFinishedTrialError):
                # Not lost: the thread that trains meets the first itself, and causes the second when it ends a
                # trial.
                return
            except SQLAlchemyError:
                continue  # an outage in the middle of it; the storage's own retries cover single calls only

    def _send(self, beat: int) -> bool:
        """Store a heartbeat; return False if the trial has ended."""
        leases = self.leases
        # Under the lock, because reading the owner and writing it must be one step: another worker that takes the
        # trial over between the two would be overwritten, and both would train.
        with study_lock(leases.storage, leases.study.study_name):
            stored = leases.storage.get_trial(trial_id(self.trial))
            if stored.state != RUNNING:
                return False
            # Watch the other owners meanwhile. A worker that looked at them only when it needs a trial would have
            # to wait for HEARTBEAT_TIMEOUT each time.
            for other in get_trials(leases.study):
                if other.state == RUNNING:
                    leases.owners.is_dead(other)
            if not leases.is_owner(stored):
                # This process was suspended or cut off for longer than HEARTBEAT_TIMEOUT. It must not write to the
                # study, the run or the checkpoints any more, which now are another worker's: end without clean-up.
                note(f"trial {stored.number} was taken over by another worker")
                os._exit(LEASE_LOST)
            leases.storage.set_trial_user_attr(trial_id(self.trial), OWNER, {**leases.owner, "beat": beat})
        return True
