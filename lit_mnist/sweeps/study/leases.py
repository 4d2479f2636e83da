"""Who works on which trial: each is worked on by one worker, and by another only once that one is dead."""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, create_trial
from sqlalchemy.exc import SQLAlchemyError

from lit_mnist.sweeps.search.optuna_private import forget_cached_trials, storage_of, trial_id
from lit_mnist.sweeps.search.samplers import make_pruner, make_sampler
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.retry import StorageGoneError, is_outage
from lit_mnist.sweeps.study.storage import Held, is_shared, study_lock
from lit_mnist.sweeps.study.study import RUNNING, get_trials, is_out_of_time
from lit_mnist.sweeps.study.summary import count_validations
from lit_mnist.terminal import note
from lit_mnist.tracking.process import is_alive, this_host, this_process

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two signs of life."""
HEARTBEAT_TIMEOUT = 20.0
"""Seconds without one after which a worker of another host is dead."""
RELEASED = "released"
"""A trial's attribute: how often it was released, with how many validations, and why the last time."""
MOST_RELEASES = 3
"""Releases with no validation between, after which the error is taken for the trial's own: it has FAILED."""
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
        return now - self.seen[trial.number][1] > HEARTBEAT_TIMEOUT


class Leases:
    """Takes trials of a study, one at a time, for one worker.

    Args:
        study: The study.
        spec: What it is about.
        worker: The worker's number on this machine.
        validations: Those of the study's longest training, which Hyperband divides.

    """

    def __init__(self, study: optuna.Study, spec: Spec, worker: int, validations: int) -> None:
        self.study, self.spec, self.validations = study, spec, validations
        self.storage = storage_of(study)
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

    def release(self, trial: Trial) -> None:
        """Leave an unfinished trial to whoever comes next."""
        trial.set_user_attr("owner", None)

    def release_after_error(self, trial: Trial, reason: str) -> int:
        """Leave a trial whose training has raised an error that may be its own; returns how often that was so.

        The count starts again at 1 if the trial has got further since the last time. At MOST_RELEASES, whoever
        takes the trial next lets it fail with `reason`.
        """
        now = self.storage.get_trial(trial_id(trial))
        released = _counted(now.user_attrs.get(RELEASED), count_validations(now))
        trial.set_user_attr(RELEASED, {**released, "reason": reason})
        self.release(trial)
        return int(released["count"])

    def _take(self, held: Held) -> Trial | None:
        trials = get_trials(self.study)
        # What this worker has asked for and never got to know of, it takes again.
        left = [t for t in trials if t.state == RUNNING and (self.owns(t) or self.watch.is_dead(t))]
        # Released trials come after new ones: an error that always comes again must not keep the others from being
        # tried. The one that was released most often comes first among them, so that it soon succeeds or fails.
        left.sort(key=lambda trial: -_releases(trial))
        first = [t for t in left if not 0 < _releases(t) < MOST_RELEASES]
        is_over = len(trials) >= self.study.user_attrs["trials"] or is_out_of_time(self.study, self.spec)
        if first or (left and is_over):
            return self._take_up((first or left)[0], held)
        return None if is_over else self._make(len(trials), held)

    def _take_up(self, left: FrozenTrial, held: Held) -> Trial:
        held.check()
        self._count_death(left)
        self.storage.set_trial_user_attr(trial_id(left), "owner", self.owner)
        return self._with_point(left.number, trial_id(left))

    def _make(self, number: int, held: Held) -> Trial:
        held.check()
        # Its owner comes with it: there is no moment in which it is nobody's.
        first = self.spec.points[number : number + 1]
        fixed = {"fixed_params": self.spec.space.encode(first[0])} if first else {}
        template = create_trial(state=RUNNING, user_attrs={"owner": self.owner}, system_attrs=fixed)
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self._with_point(number, self.storage.create_new_trial(study_id, template))

    def _count_death(self, left: FrozenTrial) -> None:
        """Count how often the trial has lost its worker since it last got further."""
        if not left.user_attrs.get("owner"):  # its worker let it go
            return
        deaths = _counted(left.user_attrs.get("deaths"), count_validations(left))
        self.storage.set_trial_user_attr(trial_id(left), "deaths", deaths)

    def _with_point(self, number: int, id_in_storage: int) -> Trial:
        """The trial; what its parameters still lack is suggested."""
        self.study.sampler = make_sampler(self.spec, number)
        self.study.pruner = make_pruner(self.spec, self.validations)
        forget_cached_trials(self.study)
        trial = Trial(self.study, id_in_storage)
        if "point" not in trial.user_attrs:
            trial.set_user_attr("point", self.spec.space.suggest(trial))
        return trial


def _counted(before: Mapping[str, Any] | None, validations: int) -> dict[str, int]:
    """One more of what happens to a trial, counted since it last had fewer validations."""
    again = before is not None and before["validations"] == validations
    return {"validations": validations, "count": before["count"] + 1 if before is not None and again else 1}


def _releases(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(RELEASED, {"count": 0})["count"])


class Beat:
    """Heartbeats of a worker for its trial, in a storage that several machines share.

    A worker that finds itself no longer the owner was taken for dead: it ends at once and reports nothing.
    A storage of one machine gets no heartbeats, since workers are seen as processes there: in a journal, which
    only grows, those of 8 workers took about 30 MB a day.

    Args:
        claims: The worker's.
        trial: What it works on.

    """

    def __init__(self, claims: Leases, trial: Trial) -> None:
        self.claims, self.trial = claims, trial
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Beat":
        if is_shared(self.claims.storage):
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        claims, beat = self.claims, 0
        while not self._end.wait(HEARTBEAT_INTERVAL):
            beat += 1
            try:
                with study_lock(claims.storage, claims.study.study_name):
                    now = claims.storage.get_trial(trial_id(self.trial))
                    if now.state != RUNNING:  # just told
                        return
                    for other in get_trials(claims.study):  # to know, once it looks for work, who is silent
                        if other.state == RUNNING:
                            claims.watch.is_dead(other)
                    if not claims.owns(now):
                        note(f"trial {now.number} was taken over by another worker")
                        os._exit(LOST)
                    claims.storage.set_trial_user_attr(
                        trial_id(self.trial), "owner", {**claims.owner, "beat": beat}
                    )
            except (StorageGoneError, UpdateFinishedTrialError):
                return  # whoever works on the trial meets the one, and has told the other
            except SQLAlchemyError:
                continue
