"""The MLflow runs of a study: one for the study, and one for each trial and seed. They are found by their tags.

study run (sweep.role=study)
├── run of trial 0           one seed: a child of the study's run
└── trial 1 (sweep.role=trial)   several seeds: a group run with mean and interval of each metric
    ├── run of seed 0
    └── run of seed 1
"""

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lit_mnist.tracking.folder import CONFIG, run_folders
from lit_mnist.tracking.journal.uploader import PATIENCE
from lit_mnist.tracking.mlflow_private import MAX_PARAM_LENGTH
from lit_mnist.tracking.provenance import source_tags
from lit_mnist.tracking.queries.reader import GOAL, GOALS, MONITOR, ROLE, SEED, STUDY, STUDY_RUN, TRIAL
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.queries.statistics import summarise
from lit_mnist.tracking.store import connect, experiment_id, find_store

if TYPE_CHECKING:
    import optuna
    from mlflow.entities import Run
    from optuna.trial import Trial

    from lit_mnist.sweeps.search.spec_file import Objective

PARENT = "mlflow.parentRunId"
PRUNED_MARK = "✂"
FINAL_METRICS = ("best/", "val/", "test/")
"""Prefixes of the metrics by which trials are compared."""
MAX_NAME_LENGTH = 250
"""Maximum length of a run's name that MLflow stores on every database."""
STATE, REASON = "sweep.state", "sweep.reason"
"""Tags of a trial's runs: how the trial ended, and why if it was pruned or failed."""


def param_name(field: str) -> str:
    """Return the name under which a fit logs a field as a parameter, such as `lr` for `model.lr`."""
    return field.split(".")[1] if "." in field else field


def run_name(
    number: int,
    point: Mapping[str, Any],
    budget: int,
    seed: int | None = None,
    mark: str = "",
    shares: Mapping[str, float] | None = None,
) -> str:
    """Return the name of a trial's run, such as `03 lr=0.011 rmsprop [500]`: the UI shows about 20 characters.

    Args:
        number: The trial's number.
        point: Its hyperparameters by their dotted names.
        budget: Trials of the study, whose numbers all take the same width.
        seed: The run's seed, if the trial has several.
        mark: PRUNED_MARK, if the trial was pruned.
        shares: The importance of each parameter of the space; the most important value comes first in the name. If
            None, the learning rate comes first.

    """

    def rank(name: str) -> float:
        if shares is None:
            return 0.0 if name.endswith("lr") else 1.0
        # A list of layer sizes has several parameters, such as `model.hidden_sizes.width`.
        return -max((share for key, share in shares.items() if f"{key}.".startswith(f"{name}.")), default=0.0)

    parts = [f"{number:0{max(2, len(str(budget - 1)))}d}", mark, "" if seed is None else f"s{seed}"]
    for name, value in sorted(point.items(), key=lambda item: rank(item[0])):
        short = name.rpartition(".")[2]
        # Long names are abbreviated, such as `bs` or `mom`, since the values distinguish the runs.
        if len(short) > 4:
            short = "".join(word[:1] for word in short.split("_")) if "_" in short else short[:3]
        # Words and lists are shown without the parameter's name.
        is_plain = isinstance(value, bool | int | float)
        text = format(value, ".3g") if isinstance(value, float) else str(value).replace(" ", "")
        parts.append(f"{short}={text}" if is_plain else text)
    return " ".join(filter(None, parts))[:MAX_NAME_LENGTH]


class TrialRuns:
    """The MLflow runs of one trial.

    Args:
        study: The study, whose own run must exist.
        trial: The trial, with its point.
        objectives: The study's objectives.

    """

    def __init__(self, study: "optuna.Study", trial: "Trial", objectives: "Sequence[Objective]") -> None:
        attributes = study.user_attrs
        self.experiment, self.study_run, self.budget = (
            attributes[key] for key in ("experiment", "run_id", "trials")
        )
        self.number = trial.number
        self.point: Mapping[str, Any] = trial.user_attrs["point"]
        goals = [f"{objective.direction} {objective.metric}" for objective in objectives]
        self.goal = goals[0]
        self.objectives = [objective.metric for objective in objectives]
        self.store = find_store()
        self.client = connect(self.store)
        self.group: str | None = None
        """The id of the parent run of the seeds' runs, if there are several seeds."""
        # Tags by which `find` finds a run again, whichever worker created it.
        self._common_tags = {STUDY: study.study_name, STUDY_RUN: self.study_run, TRIAL: str(trial.number)}
        # The UI sorts by one metric; with several objectives, another tag lists all of them.
        if len(goals) > 1:
            self._common_tags[GOALS] = ", ".join(goals)

    def tags(self, seed: int) -> dict[str, str]:
        """Return the tags of the run of one seed."""
        parent = self.group or self.study_run
        return {**self._common_tags, SEED: str(seed), GOAL: self.goal, PARENT: parent}

    def find(self, seed: int) -> "Run | None":
        """Return the run of that seed if it is finished or can be resumed; delete runs that cannot be resumed.

        Such a run has no configuration, because its worker was killed between creating it and writing the first
        file.
        """
        # By tags, which a run has from its creation, since the worker may be killed before it stores the run's id.
        for run in self._search(f"tags.`{SEED}` = '{seed}'"):
            if run.info.status == "FINISHED":
                return run
            # To be resumed, a run needs its configuration, on this machine (checked first) or among its artifacts.
            run_id = run.info.run_id
            if any(path.name == run_id and (path / CONFIG).exists() for path in run_folders(self.store.home)):
                return run
            if any(item.path == CONFIG for item in self.client.list_artifacts(run_id)):
                return run
            self.client.delete_run(run_id)
            shutil.rmtree(self.store.run_folder(run_id), ignore_errors=True)
        return None

    def name(self, seed: int | None = None) -> str:
        """Return the name of the trial's run, or of the run of one of its seeds."""
        return run_name(self.number, self.point, self.budget, seed)

    def open_group(self) -> str:
        """Find or create the parent run of the seeds' runs, log the trial's point to it, and return its id."""
        tags = {**self._common_tags, ROLE: "trial", PARENT: self.study_run, GOAL: self.goal}
        tags[MONITOR] = self.goal.partition(" ")[2].removeprefix("best/")
        # It exists if an earlier worker of this trial was killed after creating it.
        found = self._search(f"tags.`{ROLE}` = 'trial'")
        self.group = found[0].info.run_id if found else self._create(tags)
        if found and found[0].info.status != "RUNNING":
            self.client.update_run(self.group, status="RUNNING")
        self._log_point(self.group)
        return self.group

    def interrupt_group(self) -> None:
        """Set the parent run's status to KILLED, as a fit does with its own; the next worker continues both."""
        if (group := self.group) is None:
            return

        def end() -> None:
            with suppress(Exception):  # the store may be unreachable
                self.client.set_terminated(group, "KILLED")

        # With a time limit: the trial is released after this, and the time until SIGKILL may be short. A request
        # to a server that does not answer takes half a minute.
        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(PATIENCE)

    def close_group(self, state: str, reason: str | None, metrics: Sequence[Mapping[str, float]]) -> None:
        """End the parent run; log the mean of each final value over the seeds, and the objectives' intervals.

        Other metrics, such as the training loss, are not logged: MLflow would draw charts with a single dot for
        them.

        Args:
            state: How the trial ended, see `summary.STATES`.
            reason: Why, if it was pruned or failed.
            metrics: The metrics of each seed.

        """
        # With one seed there is no parent run: the seed's run represents the trial.
        if self.group is None:
            return
        from mlflow.entities import Metric

        now, points = time.time_ns() // 1_000_000, []
        for name in set.intersection(*(set(each) for each in metrics)) if metrics else ():
            if name not in self.objectives and not name.startswith(FINAL_METRICS):
                continue
            summary = summarise([each[name] for each in metrics])
            # The same names as in the seeds' runs, so that the UI sorts both by the same column.
            points.append(Metric(name, summary.mean, now, 0))
            if summary.interval is not None and name in self.objectives:
                points.append(Metric(f"{name}/interval", summary.interval, now, 0))
        self.client.log_batch(self.group, metrics=points)
        self._end(self.group, state, reason)

    def record(self, seed: int, state: str, reason: str) -> str:
        """Create a run for a trial that ended before its training began, so that it is visible; return its id."""
        run_id = self._create(self.tags(seed))
        self._log_point(run_id)
        self._end(run_id, state, reason)
        return run_id

    def mark(self, run_id: str, state: str, reason: str | None) -> None:
        """Tag a run with how its trial ended."""
        self.client.set_tag(run_id, STATE, state)
        if reason is not None:
            self.client.set_tag(run_id, REASON, reason[:MAX_PARAM_LENGTH])

    def _end(self, run_id: str, state: str, reason: str | None) -> None:
        self.mark(run_id, state, reason)
        # A pruned trial is FINISHED: MLflow has no such state, and FAILED would look like an error.
        self.client.set_terminated(run_id, "FAILED" if state == "failed" else "FINISHED")

    def _log_point(self, run_id: str) -> None:
        """Log the trial's hyperparameters in the same form as its fits; repeating the call changes nothing."""
        from mlflow.entities import Param

        # The same text as `Run.log_params`, since MLflow refuses a parameter that is logged with a different text.
        texts = {
            param_name(name): json.dumps(value) if isinstance(value, list | tuple) else str(value)
            for name, value in self.point.items()
        }
        self.client.log_batch(
            run_id, params=[Param(name, text[:MAX_PARAM_LENGTH]) for name, text in texts.items()]
        )

    def _create(self, tags: Mapping[str, str]) -> str:
        experiment = experiment_id(self.client, self.store, self.experiment)
        tags = {**source_tags(), **tags}
        return str(self.client.create_run(experiment, run_name=self.name(), tags=tags).info.run_id)

    def _search(self, condition: str) -> "list[Run]":
        """Return the trial's runs that meet the condition, the oldest first."""
        experiment = experiment_id(self.client, self.store, self.experiment)
        trial = f"tags.`{STUDY_RUN}` = '{self.study_run}' and tags.`{TRIAL}` = '{self.number}'"
        order = ["attributes.start_time ASC"]
        return list(search_runs(self.client, f"{trial} and {condition}", [experiment], order))
