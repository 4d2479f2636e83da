"""The MLflow run of a study: RUNNING as long as a sweep works on the study, on any machine."""

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
    """The run of a study, to which any number of sweeps write at a time.

    No sweep owns it. Each keeps it RUNNING, with a heartbeat that is about HEARTBEAT_INTERVAL old at most; the
    last one to leave sets its status. The run's tags name one of the living processes, as those of any run do.

    Args:
        study: The study.
        run: Its run, opened to be added to.

    """

    def __init__(self, study: optuna.Study, run: Run) -> None:
        self.study, self.run = study, run
        self._owners = OwnerWatch(storage_of(study))
        self._next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL

    def sign(self, tags: Mapping[str, str] | None = None) -> None:
        """Mark the run as RUNNING, by this process or by the one that the tags describe."""
        # It may have ended: another sweep has left meanwhile, or `--trials` was raised for a finished study.
        if self.run.data().info.status != "RUNNING":
            self.run.client.update_run(self.run.id, "RUNNING")
        for name, value in {**(tags or process_tags()), **heartbeat_tag()}.items():
            self.run.client.set_tag(self.run.id, name, value)

    def keep_running(self, trials: Sequence[FrozenTrial]) -> None:
        """Observe the other sweeps' workers, and see to the run's heartbeat; to be called every few seconds."""
        self._living_owners(trials)
        if time.monotonic() > self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL
            self.run.submit(self._renew)  # in the uploader's thread: a tracking server may take long to answer

    def close(self, status: str) -> None:
        """Leave the run: with this status, unless the study is finished or others go on with it."""
        # Whatever happened to this sweep: the study has all its trials.
        if is_finished(self.study):
            status = "FINISHED"
        elif others := self._living_owners(get_trials(self.study)):
            # A worker that has no trial at this moment is not seen here: its sweep marks the run as RUNNING again.
            with contextlib.suppress(Exception):
                self.sign(_tags_of(others[0]))
            return
        # The status goes by the journal, after everything else: it is sent later if the store is away now.
        self.run.uploader.flush()
        end = time.time_ns() // 1_000_000
        self.run.journal.append({"kind": "status", "status": status, "end_time": end}, reserved=True)

    def _living_owners(self, trials: Sequence[FrozenTrial]) -> list[Mapping[str, Any]]:
        """Return the owners of trials that may be alive; this sweep's own workers, too, while they are."""
        running = [trial for trial in trials if trial.state == RUNNING]
        return [trial.user_attrs[OWNER] for trial in running if not self._owners.is_dead(trial)]

    def _renew(self) -> None:
        """Renew the run's heartbeat, unless another sweep has just done so."""
        with contextlib.suppress(Exception):  # a store that is away gets the next one
            run = self.run.data()
            age = time.time() - float(run.data.tags.get(HEARTBEAT, 0))
            if (run.info.status != "RUNNING" or age > HEARTBEAT_INTERVAL) and not is_finished(self.study):
                self.sign()


@contextmanager
def study_run(study: optuna.Study, spec: Spec) -> Iterator[StudyRun]:
    """Open the study's own MLflow run, created if it is missing; its status is set on leaving, see `StudyRun`."""
    name = study.study_name
    # Two first sweeps that start at once must not create two runs.
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
        # Before anything is logged: from here on the run counts as alive.
        opened = StudyRun(study, run)
        opened.sign()
        if is_new:
            run.log_params({"sampler": spec.sampler, "pruner": spec.pruner, "seeds": list(spec.seeds)})
        if "experiment_id" not in study.user_attrs:  # for `sweep status`, which does not ask the tracking store
            study.set_user_attr("experiment_id", run.experiment_id)
        run.log_text(spec.text, "spec.yaml")
        run.set_tags({**git_state(), **version_tags(package_versions()), STUDY_RUN: run.id})
        # Any exception that is not listed below.
        status = "FAILED"
        try:
            yield opened
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt, JobEndsError):
            status = "KILLED"
            raise
        finally:
            opened.close(status)


def _tags_of(owner: Mapping[str, Any]) -> dict[str, str]:
    """The tags by which `liveness` finds a trial's owner."""
    tags = {name: str(owner.get(name, "")) for name in ("host", "process", "boot")}
    job, _, restart = str(owner.get("job", "")).partition(".")
    return {
        **tags,
        **({"slurm.job": job, "slurm.restart": restart, "slurm.process": tags["process"]} if job else {}),
    }
