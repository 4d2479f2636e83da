"""Leases: which worker works on which trial, and when another worker may take the trial over.

A lease is a trial's attribute `owner`: which process works on the trial, and where. In a storage that several
machines share, its worker increments the attribute `heartbeat` beside it.

A dead worker's trial is taken over in `Leases.acquire`, by any worker that looks for its next trial: under the
study's lock it picks a running trial whose owner is dead (`OwnerWatch.is_dead`) and stores itself as the owner.

A worker that lives but cannot go on with its trial releases it (`release`, `release_after_error`). A trial that
has been taken over or released too often without getting any further fails (`reason_to_give_up`).
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
"""How many trials of a study TPE learns from: with all 10,000 of a large study, suggesting takes a second."""
MAX_DEATHS = 10
"""Deaths of its workers, with no validation between, after which a trial fails."""
MAX_RELEASES = 3
"""Releases after an error, with no validation between, after which a trial fails with that error."""
# ---- Trial attributes ----
OWNER = "owner"
"""Trial attribute: who works on the trial; None after a release."""
HEARTBEAT = "heartbeat"
"""Trial attribute: `process` of the worker that sent it, and `count`, which grows with each heartbeat."""
DEATHS = "deaths"
"""Trial attribute: `count` of dead owners since the trial had `validations`."""
RELEASED = "released"
"""Trial attribute: `count` of releases after errors since the trial had `validations`, the last with `reason`."""


class OwnerWatch:
    """Decides which owners of trials are dead, from what one worker has observed.

    A process on this machine is looked up. On another machine, or in another container, a process lives as long as
    its heartbeats change, by the observer's monotonic clock: clocks of different machines are never compared.

    Args:
        storage: The study's.

    """

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self._observed: dict[int, tuple[Any, float]] = {}
        """By trial number: owner and heartbeat as last read, and when they were first read like this."""
        self._outages = 0

    def is_dead(self, trial: FrozenTrial) -> bool:
        """True if no living process works on the trial; on another host known only after HEARTBEAT_TIMEOUT."""
        # Released by its last worker.
        owner = trial.user_attrs.get(OWNER)
        if not owner:
            return True
        # A process of this machine and container can be looked up: no heartbeat is needed, and no waiting.
        if sees_processes_of(owner["host"], owner.get("boot", "")):
            return not is_alive(owner["process"])
        # While the storage was unreachable, no heartbeat could arrive either: begin to watch anew.
        outages = getattr(self.storage, "outages", 0)
        if outages != self._outages:
            self._observed, self._outages = {}, outages
        # Dead once the same owner and the same heartbeat have been seen for HEARTBEAT_TIMEOUT.
        now = time.monotonic()
        sign = (owner, trial.user_attrs.get(HEARTBEAT))
        if self._observed.get(trial.number, (None, 0.0))[0] != sign:
            self._observed[trial.number] = (sign, now)
        return now - self._observed[trial.number][1] > HEARTBEAT_TIMEOUT


class Leases:
    """Leases trials of a study to one worker, one at a time.

    Args:
        study: The study; its sampler and pruner are replaced with each trial.
        spec: Its specification.
        worker: The worker's number on this machine.
        validations: Of the study's longest training, which Hyperband divides.

    """

    def __init__(self, study: optuna.Study, spec: Spec, worker: int, validations: int) -> None:
        self.study, self.spec, self.validations = study, spec, validations
        self.storage = storage_of(study)
        self.owners = OwnerWatch(self.storage)
        # Host, boot, process with its start time: no later process, and none of another container, is taken for
        # this one.
        self.owner = {
            "host": this_host(), "boot": this_boot(), "process": this_process(),
            "job": this_job(), "task": task_name(), "worker": worker,
        }  # fmt: skip

    def acquire(self) -> Trial | None:
        """Return a trial that is now leased to this worker; None if there is none now.

        The trial is one that a dead worker left or a living one released, or else a new one. `suggest` gives it
        its parameters.
        """
        # In Optuna 4, `Trial(...)` calls the sampler. Parameters are chosen later, in `suggest`: until then a
        # sampler that does nothing.
        self.study.sampler, self.study.pruner = RandomSampler(), NopPruner()
        # If all trials have ended or are worked on, the lock is not worth waiting for: at the end of a study most
        # workers look for a trial once a second, while others train the last ones.
        trials = get_trials(self.study)
        if len(trials) >= self.study.user_attrs["trials"] and not self._left(trials):
            return None
        # Until a decision was made and stored while the lock was held.
        while True:
            try:
                # The lock makes it one step to see that a trial is free and to store the new owner.
                with study_lock(self.storage, self.study.study_name) as lock:
                    trials = get_trials(self.study)
                    # Read under the lock: the size of the study may have been raised by another sweep meanwhile.
                    may_create = len(trials) < self.study.user_attrs["trials"]
                    may_create = may_create and not is_out_of_time(self.study, self.spec)
                    left = self._choose_left(trials, may_create)
                    # A lock in PostgreSQL is lost with its connection, in silence: before anything is written,
                    # make sure that no other worker has been able to read the same.
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
                # The lock was lost meanwhile, and another worker may have leased the same trial. What this worker
                # has written is looked at anew: where it is still the owner, `_choose_left` returns the trial
                # again.
                time.sleep(1)

    def tell(self, trial: Trial, values: Sequence[float] | None, state: TrialState) -> None:
        """End the trial in the study, unless another worker has taken it over."""
        # Under the lock, nobody can take the trial over between the check and the result.
        with study_lock(self.storage, self.study.study_name):
            check_owner(self.storage, trial, self.owner)
            # `tell` calls the sampler's after_trial and the pruner. Neither may stop the study or store anything:
            # a trial that is told again after an outage would do it twice.
            self.study.sampler, self.study.pruner = RandomSampler(), NopPruner()
            self.study.tell(trial, values, state)

    def release(self, trial: Trial) -> None:
        """Leave an unfinished trial to the next worker that looks for one."""
        trial.set_user_attr(OWNER, None)

    def release_after_error(self, trial: Trial, reason: str) -> int:
        """Release a trial after an error of which the trial itself may be the cause.

        Returns:
            How often that has happened since the trial last got further. At MAX_RELEASES, the next worker that
            acquires the trial lets it fail with `reason`.

        """
        # From the storage: the worker's own copy does not know the validations that other processes reported.
        stored = self.storage.get_trial(trial_id(trial))
        released = _count_again(stored.user_attrs.get(RELEASED), count_validations(stored))
        # The reason before the release: once the owner is gone, another worker may read both.
        trial.set_user_attr(RELEASED, {**released, "reason": reason})
        self.release(trial)
        return released["count"]

    def suggest(self, leased: Trial) -> Trial:
        """Return the trial with all its parameters; the sampler suggests those that it lacks.

        Not under the study's lock, and while heartbeats are sent: a Gaussian process may take a minute for it.
        Workers that suggest at the same moment do not see each other's points.
        """
        # Each trial has a sampler seeded by its number: an interrupted study suggests what an uninterrupted one
        # does.
        self.study.sampler = make_sampler(self.spec, leased.number, get_trials(self.study))
        self.study.pruner = make_pruner(self.spec, self.validations)
        forget_cached_trials(self.study)
        is_limited = self.spec.sampler == "tpe" and len(self.spec.objectives) == 1
        with limit_trials(self.study, TPE_TRIALS if is_limited else None):
            trial = Trial(self.study, trial_id(leased))  # anew: Optuna 4 asks the sampler in this constructor
            if "point" not in trial.user_attrs:
                trial.set_user_attr("point", self.spec.space.suggest(trial))
        return trial

    def _left(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the running trials that nobody works on."""
        # This worker may own a trial that it does not know: the database stored it and became unreachable before
        # it answered. `is_dead` is asked of every other trial: each look counts as an observation.
        running = [trial for trial in trials if trial.state == RUNNING]
        return [trial for trial in running if is_leased_to(self.owner, trial) or self.owners.is_dead(trial)]

    def _choose_left(self, trials: Sequence[FrozenTrial], may_create: bool) -> FrozenTrial | None:
        """Return the trial to take over, if one comes before a new trial."""
        left = self._left(trials)
        # Trials released after an error come after new ones: an error that comes each time must not keep the
        # others from being tried. Among them the one released most often is first, so that it soon succeeds or
        # fails.
        left.sort(key=lambda trial: -_releases(trial))
        # Comes first: what a dead worker left, and what has to fail anyway.
        first = [trial for trial in left if not 0 < _releases(trial) < MAX_RELEASES]
        if first:
            return first[0]
        return left[0] if left and not may_create else None

    def _take_over(self, left: FrozenTrial) -> Trial:
        if left.user_attrs.get(OWNER):  # not released, so its owner died
            deaths = _count_again(left.user_attrs.get(DEATHS), count_validations(left))
            self.storage.set_trial_user_attr(trial_id(left), DEATHS, deaths)
        # Stored last: if this worker is killed between the two writes, the next one takes the trial over and
        # counts the death of the old owner a second time, at most.
        self.storage.set_trial_user_attr(trial_id(left), OWNER, self.owner)
        return Trial(self.study, trial_id(left))

    def _create(self, number: int) -> Trial:
        # The first trials are those of `points`, by their numbers: no queue that a killed worker could lose one
        # from.
        given = self.spec.points[number : number + 1]
        fixed = {"fixed_params": self.spec.space.encode(given[0])} if given else {}
        # Not `Study.ask`, which creates a trial without an owner: a worker that has lost the lock without knowing
        # could take it over before the owner is stored.
        template = create_trial(state=RUNNING, user_attrs={OWNER: self.owner}, system_attrs=fixed)
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return Trial(self.study, self.storage.create_new_trial(study_id, template))


def is_leased_to(owner: Mapping[str, Any], trial: FrozenTrial) -> bool:
    """True if that owner's process works on the trial."""
    stored = trial.user_attrs.get(OWNER) or {}
    return all(stored.get(key) == owner[key] for key in ("host", "boot", "process"))


def check_owner(storage: BaseStorage, trial: Trial, owner: Mapping[str, Any]) -> FrozenTrial:
    """Return the trial as stored; end this process if somebody else than `owner` works on it now.

    That happens to a process that was suspended, or cut off from the database, for longer than HEARTBEAT_TIMEOUT.
    It must write nothing more to the study, the run and the checkpoints, which are another worker's now, so it
    ends without any clean-up.
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
    # Mostly out of memory: the kernel kills the process without an exception, and would kill the next one as well.
    if deaths["count"] >= MAX_DEATHS:
        return f"its worker was killed {deaths['count']} times with nothing won between: out of memory?"
    if released["count"] >= MAX_RELEASES:
        return f"{released['reason']} ({released['count']} times in a row)"
    return None


def _count_again(before: Mapping[str, Any] | None, validations: int) -> dict[str, int]:
    """Increment a count that starts again at 1 whenever the trial has more validations than at the last time."""
    if before is not None and before["validations"] == validations:
        return {"validations": validations, "count": before["count"] + 1}
    return {"validations": validations, "count": 1}


def _releases(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(RELEASED, {"count": 0})["count"])
