"""Who works on which trial: each is worked on by one worker, and by another only once that one is dead."""

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, create_trial
from sqlalchemy.exc import SQLAlchemyError

from lit_mnist.sweeps.patience import StorageGoneError, is_outage
from lit_mnist.sweeps.samplers import make_pruner, make_sampler
from lit_mnist.sweeps.spec import Spec
from lit_mnist.sweeps.storage import Held, study_lock
from lit_mnist.sweeps.study import RUNNING, get_trials, is_out_of_time
from lit_mnist.tracking.process import is_alive, this_host, this_process
from lit_mnist.tracking.terminal import note

BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 20.0
"""Seconds without one after which a worker of another host is dead."""
LOST = 3
"""Exit code of a worker whose trial another one has taken over."""


@dataclass
class Watch:
    """What one worker has seen of the others' signs of life, by its own clock."""

    storage: BaseStorage
    seen: dict[int, tuple[Any, float]] = field(default_factory=dict)
    """Of each trial of another host: its owner as last seen, and since when that is so."""
    _outages: int = 0

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether nobody works on the trial any more."""
        owner = trial.user_attrs.get("owner")
        if not owner:
            return True
        if owner["host"] == this_host():
            return not is_alive(owner["process"])
        outages = getattr(self.storage, "outages", 0)
        if outages != self._outages:  # who could not be read may have lived
            self.seen, self._outages = {}, outages
        now = time.monotonic()
        if self.seen.get(trial.number, (None, 0.0))[0] != owner:
            self.seen[trial.number] = (owner, now)
        return now - self.seen[trial.number][1] > SILENCE


class Claims:
    """Takes trials of a study, one at a time, for one worker.

    Args:
        study: The study.
        spec: What it is about.
        worker: The worker's number on this machine.
        epochs: The longest training of the study, which pruners divide.

    """

    def __init__(self, study: optuna.Study, spec: Spec, worker: int, epochs: int) -> None:
        self.study, self.spec, self.epochs = study, spec, epochs
        self.storage = study._storage
        self.watch = Watch(self.storage)
        self.owner = {"host": this_host(), "process": this_process(), "worker": worker, "beat": 0}

    def take(self) -> Trial | None:
        """A trial to work on with all its parameters, left by somebody or new; None where there is none now."""
        while True:
            try:
                with study_lock(self.storage, self.study.study_name) as held:
                    trial = self._take(held)
                    held.check()
                    return trial
            except SQLAlchemyError as error:
                if not is_outage(error):
                    raise
                time.sleep(1)  # the lock went with its server: what was done under it may not hold

    def owns(self, trial: FrozenTrial) -> bool:
        """Whether the trial is this worker's."""
        owner = trial.user_attrs.get("owner") or {}
        return all(owner.get(key) == self.owner[key] for key in ("host", "process"))

    def let_go(self, trial: Trial) -> None:
        """Leave an unfinished trial to whoever comes next."""
        trial.set_user_attr("owner", None)

    def _take(self, held: Held) -> Trial | None:
        trials = get_trials(self.study)
        for left in (trial for trial in trials if trial.state == RUNNING):
            # What this worker has asked for and never got to know of, it takes again.
            if self.owns(left) or self.watch.is_dead(left):
                held.check()
                self._count_death(left)
                self.storage.set_trial_user_attr(left._trial_id, "owner", self.owner)
                return self._with_point(left.number, left._trial_id)
        number = len(trials)
        if number >= self.study.user_attrs["trials"] or is_out_of_time(self.study, self.spec):
            return None
        held.check()
        # Its owner comes with it: there is no moment in which it is nobody's.
        first = self.spec.points[number : number + 1]
        fixed = {"fixed_params": self.spec.space.encode(first[0])} if first else {}
        template = create_trial(state=RUNNING, user_attrs={"owner": self.owner}, system_attrs=fixed)
        return self._with_point(number, self.storage.create_new_trial(self.study._study_id, template))

    def _count_death(self, left: FrozenTrial) -> None:
        """Keep account of how often the trial has lost its worker since it last got further."""
        if not left.user_attrs.get("owner"):  # which let it go
            return
        validations = len(left.intermediate_values)
        before = left.user_attrs.get("deaths", {"validations": validations, "count": 0})
        count = before["count"] + 1 if before["validations"] == validations else 1
        deaths = {"validations": validations, "count": count}
        self.storage.set_trial_user_attr(left._trial_id, "deaths", deaths)

    def _with_point(self, number: int, trial_id: int) -> Trial:
        """The trial; what its parameters still lack is suggested."""
        self.study.sampler = make_sampler(self.spec, number)
        self.study.pruner = make_pruner(self.spec, self.epochs)
        self.study._thread_local.cached_all_trials = None
        trial = Trial(self.study, trial_id)
        if "point" not in trial.user_attrs:
            trial.set_user_attr("point", self.spec.space.suggest(trial))
        return trial


class Beat:
    """Signs of life of a worker for a trial, where workers of other machines may look for them.

    A worker that finds itself no longer the owner has been taken for dead: it ends at once, and tells nobody.

    Args:
        claims: The worker's.
        trial: What it works on.

    """

    def __init__(self, claims: Claims, trial: Trial) -> None:
        self.claims, self.trial = claims, trial
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Beat":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        claims, beat = self.claims, 0
        while not self._end.wait(BEAT):
            beat += 1
            try:
                with study_lock(claims.storage, claims.study.study_name):
                    now = claims.storage.get_trial(self.trial._trial_id)
                    if now.state != RUNNING:  # just told
                        return
                    for other in get_trials(claims.study):  # to know, once it looks for work, who is silent
                        if other.state == RUNNING:
                            claims.watch.is_dead(other)
                    if not claims.owns(now):
                        note(f"trial {now.number} was taken over by another worker")
                        os._exit(LOST)
                    claims.storage.set_trial_user_attr(
                        self.trial._trial_id, "owner", {**claims.owner, "beat": beat}
                    )
            except (StorageGoneError, UpdateFinishedTrialError):
                return  # whoever works on the trial meets the one, and has told the other
            except SQLAlchemyError:
                continue
