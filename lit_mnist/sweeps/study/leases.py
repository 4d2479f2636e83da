"""Leases: which worker works on which trial, and when another worker may take the trial over.

A lease is a trial's attribute `owner`: which process works on the trial, and on which host. In a storage that
several machines share, the worker also increments the attribute `heartbeat`.

`Leases.acquire` takes over the trial of a dead worker: under the study's lock, a worker that needs a trial chooses
a running trial whose owner is dead (`OwnerWatch.is_dead`) and stores itself as the owner.

A living worker that cannot continue its trial releases it (`release`, `release_after_error`). A trial that was
taken over or released too often without progress fails (`reason_to_give_up`).
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from lit_mnist.slurm import task_name, this_job
from lit_mnist.sweeps.search.optuna_private import forget_cached_trials, limit_trials, storage_of, trial_id
from lit_mnist.sweeps.search.samplers import make_pruner, make_sampler
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.locks import study_lock
from lit_mnist.sweeps.study.retry import is_connection_error
from lit_mnist.sweeps.study.study import RUNNING, get_trials, is_out_of_time
from lit_mnist.sweeps.study.summary import count_validations
from lit_mnist.terminal import note
from lit_mnist.tracking.process import is_alive, sees_processes_of, this_boot, this_host, this_process

# ---- Limits ----
HEARTBEAT_INTERVAL = 5.0
"""Seconds between two heartbeats of a worker for its trial, in a storage that several machines share."""
HEARTBEAT_TIMEOUT = 20.0
"""Seconds without a new heartbeat after which a worker on another machine counts as dead."""
LEASE_LOST = 3
"""Exit code of a worker whose trial another worker has taken over."""
TPE_TRIALS = 1000
"""Number of trials that TPE uses: with all 10,000 trials of a large study, a suggestion takes a second."""
MAX_DEATHS = 10
"""Number of deaths of its workers, without a validation in between, after which a trial fails."""
MAX_RELEASES = 3
"""Number of releases after errors, without a validation in between, after which a trial fails with that error."""
# ---- Trial attributes ----
OWNER = "owner"
"""Trial attribute: the process that works on the trial; None after a release."""
HEARTBEAT = "heartbeat"
"""Trial attribute: `process` of the worker that sent it, and `count`, which grows with each heartbeat."""
DEATHS = "deaths"
"""Trial attribute: `count`, the number of dead owners since the trial had `validations` validations."""
RELEASED = "released"
"""Trial attribute: like DEATHS for releases after errors, with the `reason` of the last one."""


class OwnerWatch:
    """Decides which owners of trials are dead, from the observations of one worker.

    A process on this machine is looked up. On another machine, or in another container, a process counts as alive
    as long as its heartbeats change, by the observer's monotonic clock: clocks of machines are never compared.

    Args:
        storage: The study's storage.

    """

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self._observed: dict[int, tuple[Any, float]] = {}
        """By trial number: the owner and heartbeat last read, and when these values were first read."""
        self._outages = 0

    def is_dead(self, trial: FrozenTrial) -> bool:
        """True if no living process works on the trial; for other hosts, only after HEARTBEAT_TIMEOUT."""
        # The last worker has released the trial.
        owner = trial.user_attrs.get(OWNER)
        if not owner:
            return True
        # A process of this machine and container can be looked up, without heartbeats or waiting.
        if sees_processes_of(owner["host"], owner.get("boot", "")):
            return not is_alive(owner["process"])
        # While the storage was unreachable, no heartbeat could arrive either, so the observation starts again.
        outages = getattr(self.storage, "outages", 0)
        if outages != self._outages:
            self._observed, self._outages = {}, outages
        # Dead once owner and heartbeat have not changed for HEARTBEAT_TIMEOUT.
        now = time.monotonic()
        sign = (owner, trial.user_attrs.get(HEARTBEAT))
        if self._observed.get(trial.number, (None, 0.0))[0] != sign:
            self._observed[trial.number] = (sign, now)
        return now - self._observed[trial.number][1] > HEARTBEAT_TIMEOUT


class Leases:
    """Leases trials of a study to one worker, one at a time.

    Args:
        study: The study; its sampler and pruner are replaced for each trial.
        spec: Its specification.
        worker: The worker's number on this machine.
        validations: Number of validations of the study's longest training, for Hyperband.

    """

    def __init__(self, study: optuna.Study, spec: Spec, worker: int, validations: int) -> None:
        self.study, self.spec, self.validations = study, spec, validations
        self.storage = storage_of(study)
        self.owners = OwnerWatch(self.storage)
        # Host, boot and process with its start time identify this process, also among containers and later
        # processes.
        self.owner = {
            "host": this_host(), "boot": this_boot(), "process": this_process(),
            "job": this_job(), "task": task_name(), "worker": worker,
        }  # fmt: skip

    def acquire(self) -> Trial | None:
        """Return a trial that is now leased to this worker; None if no trial is available now.

        It is a trial of a dead worker, a released trial, or a new trial. `suggest` chooses its parameters.
        """
        # Optuna 4 calls the sampler in `Trial(...)`. Parameters are chosen later, in `suggest`, so use one that
        # does nothing here.
        self.study.sampler, self.study.pruner = RandomSampler(), NopPruner()
        # If no trial is available, do not wait for the lock: at the end of a study most workers look for a trial
        # once a second, while others train the last ones.
        trials = get_trials(self.study)
        if len(trials) >= self.study.user_attrs["trials"] and not self._left(trials):
            return None
        # Repeated until the decision is made and stored while the lock is held.
        while True:
            try:
                # The lock makes checking that a trial is free and storing its new owner one atomic step.
                with study_lock(self.storage, self.study.study_name) as lock:
                    trials = get_trials(self.study)
                    # Read under the lock, since another sweep may have raised the number of trials.
                    may_create = len(trials) < self.study.user_attrs["trials"]
                    may_create = may_create and not is_out_of_time(self.study, self.spec)
                    left = self._choose_left(trials, may_create)
                    # A lock in PostgreSQL is lost silently with its connection, so check it before writing.
                    lock.check()
                    trial = None
                    if left is not None:
                        trial = self._take_over(left)
                    elif may_create:
                        trial = self._create(len(trials))
                    lock.check()
                    return trial
            except SQLAlchemyError as error:
                if not is_connection_error(error):
                    raise
                # The lock was lost, and another worker may have leased the same trial. If this worker is still the
                # stored owner, `_choose_left` returns the trial again.
                time.sleep(1)

    def tell(self, trial: Trial, values: Sequence[float] | None, state: TrialState) -> None:
        """End the trial in the study, unless another worker has taken it over."""
        # Under the lock, so that no worker takes over the trial between the check and the result.
        with study_lock(self.storage, self.study.study_name):
            check_owner(self.storage, trial, self.owner)
            # `tell` calls the sampler's after_trial and the pruner, which could store something twice if the call
            # is repeated after an outage. So use ones that do nothing.
            self.study.sampler, self.study.pruner = RandomSampler(), NopPruner()
            self.study.tell(trial, values, state)

    def release(self, trial: Trial) -> None:
        """Release an unfinished trial, for the next worker that looks for one."""
        trial.set_user_attr(OWNER, None)

    def release_after_error(self, trial: Trial, reason: str) -> int:
        """Release a trial after an error that the trial itself may have caused.

        Returns:
            How often this has happened since the trial's last validation. At MAX_RELEASES, the next worker that
            acquires the trial fails it with `reason`.

        """
        # From the storage, since the worker's own copy lacks validations that other processes have reported.
        stored = self.storage.get_trial(trial_id(trial))
        released = _count_again(stored.user_attrs.get(RELEASED), count_validations(stored))
        # The reason is stored before the release, after which another worker may read it.
        trial.set_user_attr(RELEASED, {**released, "reason": reason})
        self.release(trial)
        return released["count"]

    def suggest(self, leased: Trial) -> Trial:
        """Return the trial with all its parameters; the sampler suggests missing ones.

        This is done without the study's lock, and while heartbeats are sent, since a Gaussian process may take a
        minute. Workers that call it at the same time do not see each other's points.
        """
        # Each trial has a sampler seeded by its number, so that an interrupted study suggests the same points as
        # an uninterrupted one.
        trials = get_trials(self.study)  # once: with 10,000 trials it takes 20 ms
        self.study.sampler = make_sampler(self.spec, leased.number, trials)
        self.study.pruner = make_pruner(self.spec, self.validations)
        forget_cached_trials(self.study)
        is_limited = self.spec.sampler == "tpe" and len(self.spec.objectives) == 1
        limit = TPE_TRIALS if is_limited else len(trials)
        with limit_trials(self.study, trials, limit, has_constraints=bool(self.spec.constraints)):
            # A new object, since Optuna 4 calls the sampler in the constructor.
            trial = Trial(self.study, trial_id(leased))
            if "point" not in trial.user_attrs:
                trial.set_user_attr("point", self.spec.space.suggest(trial))
        return trial

    def _left(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the running trials that no process works on."""
        # This worker may own a trial without knowing it, if the database stored the lease and became unreachable
        # before answering. `is_dead` is called for all other trials, since each call is an observation.
        running = [trial for trial in trials if trial.state == RUNNING]
        return [trial for trial in running if is_leased_to(self.owner, trial) or self.owners.is_dead(trial)]

    def _choose_left(self, trials: Sequence[FrozenTrial], may_create: bool) -> FrozenTrial | None:
        """Return the trial to take over, or None if a new trial should be created instead."""
        left = self._left(trials)
        # New trials have priority over trials that were released after an error, so that a recurring error does
        # not block the others. The one that was released most often comes first, so that it soon succeeds or
        # fails.
        left.sort(key=lambda trial: -_releases(trial))
        # Trials of dead workers, and trials that have to fail anyway, have priority over new ones.
        first = [trial for trial in left if not 0 < _releases(trial) < MAX_RELEASES]
        if first:
            return first[0]
        return left[0] if left and not may_create else None

    def _take_over(self, left: FrozenTrial) -> Trial:
        if left.user_attrs.get(OWNER):  # not released, so its owner died
            deaths = _count_again(left.user_attrs.get(DEATHS), count_validations(left))
            self.storage.set_trial_user_attr(trial_id(left), DEATHS, deaths)
        # Stored last: if this worker is killed between the two writes, the next one takes over the trial, and at
        # most counts the death of the old owner twice.
        self.storage.set_trial_user_attr(trial_id(left), OWNER, self.owner)
        return Trial(self.study, trial_id(left))

    def _create(self, number: int) -> Trial:
        # The first trials get the given points by their numbers. There is no queue from which a killed worker
        # could lose a point.
        given = self.spec.points[number : number + 1]
        fixed = {"fixed_params": self.spec.space.encode(given[0])} if given else {}
        # Not `Study.ask`, which creates a trial without an owner: a worker that has lost its lock unnoticed could
        # take it over before the owner is stored.
        template = create_trial(state=RUNNING, user_attrs={OWNER: self.owner}, system_attrs=fixed)
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return Trial(self.study, self.storage.create_new_trial(study_id, template))


def is_leased_to(owner: Mapping[str, Any], trial: FrozenTrial) -> bool:
    """True if the process of `owner` works on the trial."""
    stored = trial.user_attrs.get(OWNER) or {}
    return all(stored.get(key) == owner[key] for key in ("host", "boot", "process"))


def check_owner(storage: BaseStorage, trial: Trial, owner: Mapping[str, Any]) -> FrozenTrial:
    """Return the stored trial; end this process if another process than `owner` works on it now.

    This happens if the process was suspended, or disconnected from the database, for longer than
    HEARTBEAT_TIMEOUT. The study, the run and the checkpoints now belong to another worker, so this process ends
    without any clean-up that would write to them.
    """
    stored = storage.get_trial(trial_id(trial))
    if stored.state == RUNNING and not is_leased_to(owner, stored):
        note(f"trial {trial.number} was taken over by another worker")
        # Not an exception: handlers and `finally` blocks would still write to the run and the checkpoints.
        os._exit(LEASE_LOST)
    return stored


def reason_to_give_up(trial: Trial) -> str | None:
    """Return why the trial must fail instead of being trained again; None if it may be trained."""
    deaths, released = (trial.user_attrs.get(name, {"count": 0}) for name in (DEATHS, RELEASED))
    # Usually out of memory: the kernel kills the process without an exception, and would kill the next one too.
    if deaths["count"] >= MAX_DEATHS:
        return f"its worker was killed {deaths['count']} times with nothing won between: out of memory?"
    if released["count"] >= MAX_RELEASES:
        return f"{released['reason']} ({released['count']} times in a row)"
    return None


def _count_again(before: Mapping[str, Any] | None, validations: int) -> dict[str, int]:
    """Increment a count, or restart it at 1 if the trial has done validations since the last call."""
    if before is not None and before["validations"] == validations:
        return {"validations": validations, "count": before["count"] + 1}
    return {"validations": validations, "count": 1}


def _releases(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(RELEASED, {"count": 0})["count"])
