"""The MLflow run of a study: its status is RUNNING while a sweep on any machine works on the study."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lit_mnist.errors import Interrupted
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.job_time import JobEndsError
from lit_mnist.sweeps.study.leases import OWNER, OwnerWatch
from lit_mnist.sweeps.study.locks import study_lock
from lit_mnist.sweeps.study.study import CONFIRMS, RUNNING, experiment_name, get_trials, is_finished
from lit_mnist.sweeps.study.trial_runs import PARENT
from lit_mnist.tracking.liveness import HEARTBEAT, HEARTBEAT_INTERVAL, heartbeat_tag
from lit_mnist.tracking.process import process_tags
from lit_mnist.tracking.provenance import git_state, package_versions, source_tags, version_tags
from lit_mnist.tracking.queries.reader import ROLE, STUDY, STUDY_RUN
from lit_mnist.tracking.run import Run, open_run
from lit_mnist.tracking.store import connect, experiment_id, find_store


class StudyRun:
    """The run of a study, to which several sweeps may write at the same time.

    Each sweep keeps the run RUNNING and renews its heartbeat every HEARTBEAT_INTERVAL; the last sweep to end sets
    the final status. As for any run, the run's tags name a living process.

    Args:
        study: The study.
        run: The study's run, opened with `run_id`.

    """

    def __init__(self, study: optuna.Study, run: Run) -> None:
        self.study, self.run = study, run
        self._owners = OwnerWatch(storage_of(study))
        self._next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL

    def sign(self, tags: Mapping[str, str] | None = None) -> None:
        """Mark the run as RUNNING, by this process or by the one that the tags describe."""
        # The run may have ended: another sweep may have closed it, or `--trials` was raised for a finished study.
        if self.run.data().info.status != "RUNNING":
            self.run.client.update_run(self.run.id, "RUNNING")
        for name, value in {**(tags or process_tags()), **heartbeat_tag()}.items():
            self.run.client.set_tag(self.run.id, name, value)

    def keep_running(self, trials: Sequence[FrozenTrial]) -> None:
        """Observe the other sweeps' workers and renew the run's heartbeat; to be called every few seconds."""
        self._living_owners(trials)
        if time.monotonic() > self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL
            self.run.submit(self._renew)  # in the uploader's thread, since a tracking server may be slow

    def close(self, status: str) -> None:
        """End this sweep's work on the run and set its status, unless other sweeps continue the study."""
        # A study with all its trials is finished, even if this sweep has failed.
        if is_finished(self.study):
            status = "FINISHED"
        elif others := self._living_owners(get_trials(self.study)):
            # The run's tags now name the owner of a trial that is still running, in the form that `liveness`
            # reads. If another sweep has only idle workers at this moment, it marks the run as RUNNING again
            # itself.
            owner = others[0]
            tags = {name: str(owner.get(name, "")) for name in ("host", "process", "boot")}
            job, _, restart = str(owner.get("job", "")).partition(".")
            if job:
                tags |= {"slurm.job": job, "slurm.restart": restart, "slurm.process": tags["process"]}
            with contextlib.suppress(Exception):
                self.sign(tags)
            return
        # The status is sent through the journal after everything else, and later if the store is unreachable now.
        self.run.uploader.flush()
        end = time.time_ns() // 1_000_000
        self.run.journal.append({"kind": "status", "status": status, "end_time": end}, reserved=True)

    def _living_owners(self, trials: Sequence[FrozenTrial]) -> list[Mapping[str, Any]]:
        """Return the owners of running trials that may be alive, including this sweep's own workers."""
        running = [trial for trial in trials if trial.state == RUNNING]
        return [trial.user_attrs[OWNER] for trial in running if not self._owners.is_dead(trial)]

    def _renew(self) -> None:
        """Renew the run's heartbeat, unless another sweep has just done so."""
        with contextlib.suppress(Exception):  # an unreachable store gets the next heartbeat
            run = self.run.data()
            age = time.time() - float(run.data.tags.get(HEARTBEAT, 0))
            if (run.info.status != "RUNNING" or age > HEARTBEAT_INTERVAL) and not is_finished(self.study):
                self.sign()


@contextmanager
def study_run(study: optuna.Study, spec: Spec) -> Iterator[StudyRun]:
    """Open the study's own MLflow run, created if it is missing; `StudyRun.close` sets its status at the end."""
    name = study.study_name
    # Under the lock, so that two sweeps that start at once do not create two runs.
    with study_lock(storage_of(study), name):
        run_id = study.user_attrs.get("run_id")
        if is_new := run_id is None:
            store, experiment = find_store(), experiment_name(name)
            client = connect(store)
            tags = {**source_tags(), **process_tags(), **heartbeat_tag(), STUDY: name, ROLE: "study"}
            if (confirmed := study.user_attrs.get(CONFIRMS)) is not None:
                tags[PARENT] = confirmed
            number = experiment_id(client, store, experiment)
            run_id = client.create_run(number, run_name=name, tags=tags).info.run_id
            study.set_user_attr("experiment", experiment)
            study.set_user_attr("run_id", run_id)
    with open_run("", run_id=run_id) as run:
        # Before anything is logged, so that the run counts as alive.
        opened = StudyRun(study, run)
        opened.sign()
        if is_new:
            run.log_params({"sampler": spec.sampler, "pruner": spec.pruner, "seeds": list(spec.seeds)})
        if "experiment_id" not in study.user_attrs:  # for `sweep status`, which does not use the tracking store
            study.set_user_attr("experiment_id", run.experiment_id)
        run.log_text(spec.text, "spec.yaml")
        run.set_tags({**git_state(), **version_tags(package_versions()), STUDY_RUN: run.id})
        status = "FAILED"  # for exceptions that are not listed below
        try:
            yield opened
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt, JobEndsError):
            status = "KILLED"
            raise
        finally:
            opened.close(status)
