"""A study's runs in MLflow: one for the study, one for each trial and seed, found again by their tags."""

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_mnist.sweeps.workers.reporter import REASON, STATE
from lit_mnist.tracking.folder import CONFIG, run_folders
from lit_mnist.tracking.mlflow_private import MAX_PARAM_LENGTH
from lit_mnist.tracking.provenance import source_tags
from lit_mnist.tracking.queries.reader import GOAL, SEED, STUDY, TRIAL
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.queries.statistics import summarise
from lit_mnist.tracking.store import connect, experiment_id, find_store

if TYPE_CHECKING:
    from mlflow.entities import Run

ROLE, PARENT = "sweep.role", "mlflow.parentRunId"
OF = "sweep.run"
"""The tag that holds the id of the study's own run: another study of the same name has another."""


class TrialRuns:
    """The runs of one trial.

    Args:
        study: The study's name.
        experiment: MLflow's name of it.
        of: The study's own run.
        number: The trial's.
        goal: What the study looks for first.

    """

    def __init__(self, study: str, experiment: str, of: str, number: int, goal: str) -> None:
        self.study, self.experiment, self.of, self.number, self.goal = study, experiment, of, number, goal
        self.store = find_store()
        self.client = connect(self.store)
        self.group: str | None = None
        """The run that holds those of the seeds together, where there are several."""

    def tags(self, seed: int) -> dict[str, str]:
        """Of the run of one seed."""
        return {**self._common(), SEED: str(seed), GOAL: self.goal, PARENT: self.group or self.of}

    def find(self, seed: int) -> "Run | None":
        """The run of that seed that can be gone on with; one that has nothing yet is deleted."""
        for run in self._search(f"tags.`{SEED}` = '{seed}'"):
            if run.info.status == "FINISHED" or self._can_go_on(run.info.run_id):
                return run
            self.client.delete_run(run.info.run_id)
            shutil.rmtree(self.store.run_folder(run.info.run_id), ignore_errors=True)
        return None

    def metrics(self, run_id: str) -> dict[str, float]:
        """The last value of each metric of a finished run."""
        return dict(self.client.get_run(run_id).data.metrics)

    def open_group(self) -> None:
        """Find or make the run that those of the seeds are children of."""
        tags = {**self._common(), ROLE: "trial", PARENT: self.of}
        found = self._search(f"tags.`{ROLE}` = 'trial'")
        self.group = found[0].info.run_id if found else self._create(f"trial {self.number}", tags)

    def close_group(self, state: str, reason: str | None, metrics: Sequence[Mapping[str, float]]) -> None:
        """Say how the trial ended, with mean and interval of each metric over the seeds."""
        if self.group is None:
            return
        from mlflow.entities import Metric

        now, points = time.time_ns() // 1_000_000, []
        for name in set.intersection(*(set(each) for each in metrics)) if metrics else ():
            summary = summarise([each[name] for each in metrics])
            points.append(Metric(f"{name}/mean", summary.mean, now, 0))
            if summary.interval is not None:
                points.append(Metric(f"{name}/interval", summary.interval, now, 0))
        self.client.log_batch(self.group, metrics=points)
        self.mark(self.group, state, reason)
        self.client.set_terminated(self.group, "FAILED" if state == "failed" else "FINISHED")

    def record(self, seed: int, state: str, reason: str, point: Mapping[str, Any]) -> str:
        """A run for a trial that could not even start, so that it can be seen; returns its id."""
        run_id = self._create(f"trial {self.number}", self.tags(seed))
        for name, value in point.items():
            self.client.log_param(run_id, name.rpartition(".")[2], str(value)[:MAX_PARAM_LENGTH])
        self.mark(run_id, state, reason)
        self.client.set_terminated(run_id, "FAILED" if state == "failed" else "FINISHED")
        return run_id

    def mark(self, run_id: str, state: str, reason: str | None) -> None:
        """Tag a run with how its trial ended."""
        self.client.set_tag(run_id, STATE, state)
        if reason is not None:
            self.client.set_tag(run_id, REASON, reason[:MAX_PARAM_LENGTH])

    def _common(self) -> dict[str, str]:
        return {STUDY: self.study, OF: self.of, TRIAL: str(self.number)}

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        where = experiment_id(self.client, self.store, self.experiment)
        return str(self.client.create_run(where, run_name=name, tags={**source_tags(), **tags}).info.run_id)

    def _search(self, condition: str) -> "list[Run]":
        where = experiment_id(self.client, self.store, self.experiment)
        what = f"tags.`{OF}` = '{self.of}' and tags.`{TRIAL}` = '{self.number}' and {condition}"
        return list(search_runs(self.client, what, [where], ["attributes.start_time ASC"]))

    def _can_go_on(self, run_id: str) -> bool:
        """Whether the run has a configuration, here or in the store."""
        if any(path.name == run_id and (path / CONFIG).exists() for path in run_folders(self.store.home)):
            return True
        return any(item.path == CONFIG for item in self.client.list_artifacts(run_id))
