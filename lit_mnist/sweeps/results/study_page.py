"""Updates a study's page in MLflow's UI: description, results and names of its trials, and a saved view.

This is done in a thread of the runner, so that it takes no time of the workers, and a slow or unreachable store
does not delay the sweep. If an update fails, its data is sent with the next one.
"""

import contextlib
import json
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial

from lit_mnist.sweeps.results.confirmation import read_confirmation, verdict
from lit_mnist.sweeps.results.description import (
    StudyPlace,
    best_first,
    bounds,
    describe_study,
    show_result,
    trial_run,
    view_key,
)
from lit_mnist.sweeps.results.importances import estimate_importances
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.storage import is_confirmation
from lit_mnist.sweeps.study.study import COMPLETE, PRUNED
from lit_mnist.sweeps.study.summary import StudySummary, point, runs
from lit_mnist.sweeps.study.trial_runs import PRUNED_MARK, STATE, param_name, run_name
from lit_mnist.terminal import note
from lit_mnist.tracking.descriptions import image, join
from lit_mnist.tracking.mlflow_private import DESCRIPTION, VIEW_TAG, saved_view
from lit_mnist.tracking.process import shown_arguments
from lit_mnist.tracking.queries.reader import RESULT, ROLE, STUDY_RUN, TRIAL
from lit_mnist.tracking.queries.search import search_runs
from lit_mnist.tracking.store import connect, find_store, reason

INTERVAL = "interval"
"""The tag of a trial's run with half the interval of its result."""
RENAMED = 100
"""Number of trials whose names are changed to show the most important parameter first."""
PAUSE = 0.5
"""Minimum time in seconds between two updates."""
FIGURES = ("pareto_front.png", "heat_map.png", "history.png")
"""The description shows the first of these figures that exists; a Pareto front needs several objectives."""
MISTAKES = ("val_confusion_matrix.png", "val_reconstructions.png")
"""Figures of the best trial that the description shows, if there are any."""


class StudyPage:
    """Context manager that updates the study's page in the background after each call of `update`.

    Args:
        study: The study, whose own MLflow run must exist.
        spec: Its specification.
        command: The command that continues the study; None for the current one.

    """

    def __init__(self, study: optuna.Study, spec: Spec, command: str | None = None) -> None:
        self.spec = spec
        attributes = study.user_attrs
        self.experiment_id, self.run_id = attributes["experiment_id"], attributes["run_id"]
        self.command = command or shlex.join(["lit-mnist", *shown_arguments()])
        self._client = connect(find_store())
        self._shown: set[int] | None = None
        """Numbers of the trials whose runs show how they ended; None until the store has been asked."""
        self.images: int | None = None
        """Number of validation images, as soon as it is known."""
        self._result = ""
        """The tag RESULT as it was last sent: it rarely changes, and each tag takes 7 ms of a processor."""
        self._most_trials = spec.most_trials()  # lists the whole grid, and so not for each update
        self._confirmed = read_confirmation(storage_of(study), study.study_name)
        self._pending: StudySummary | None = None
        self._lock = threading.Lock()
        self._changed, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="lit-mnist-study-page", daemon=True)
        self._failed = False

    def __enter__(self) -> "StudyPage":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In this order, so that the thread sees both when it wakes up.
        self._closing.set()
        self._changed.set()
        self._thread.join(timeout=10)  # a store that does not answer must not keep the process from ending

    def update(self, summary: StudySummary) -> None:
        """Request an update with the current state of the study; returns at once."""
        with self._lock:
            self._pending = summary
        self._changed.set()

    def write(self, summary: StudySummary, figures: bool = False) -> None:
        """Send all changes to the store.

        Args:
            summary: The study.
            figures: Show figures that have been logged.

        Raises:
            Exception: any error of the store.

        """
        # Each trial's run is changed only once, since it takes a request and a study may have thousands of trials.
        if self._shown is None:
            self._shown = self._find_shown() if summary.finished else set()
        for trial in summary.finished:
            if trial.number not in self._shown:
                self._show_trial(summary, trial)
                self._shown.add(trial.number)
        ranked = best_first(summary)
        if ranked and self.images is None:
            self.images = self._count_images(ranked[0])
        shown = self._find_figures(ranked) if figures else ()
        # Without the points, which are in the description's table: long lines are cut at the page's edge.
        confirmed = verdict(summary, self._confirmed, with_points=False)
        place = StudyPlace(
            self.experiment_id, self.run_id, self.command, self.images, shown, self._most_trials, confirmed
        )
        text = describe_study(summary, place)
        set_shared_tag(self._client.set_tag, self.run_id, DESCRIPTION, text)
        if ranked:
            shown_result = show_result(summary, ranked[0], self.images)
            front = f", of {len(ranked)} on the Pareto front" if len(summary.objectives) > 1 < len(ranked) else ""
            result = f"{summary.objectives[0]} {shown_result} (trial {ranked[0].number}{front})"
            if result != self._result or figures:  # in the end always: another task may have sent an older one
                set_shared_tag(self._client.set_tag, self.run_id, RESULT, result)
                self._result = result
        # The experiment has the same description, since the UI opens there and not at the study's run. A
        # confirmation is in its study's experiment, whose description has its result.
        if not is_confirmation(self.spec.name):
            set_shared_tag(self._client.set_experiment_tag, self.experiment_id, DESCRIPTION, text)

    def save_view(self) -> None:
        """Save the view "trials, best first", with the swept parameters, the objectives, state and result."""
        objectives = [f"metrics.`{objective.metric}`" for objective in self.spec.objectives]
        swept = [f"params.`{param_name(name)}`" for name in self.spec.space.parameters]
        # The columns have the names of logged parameters; conditional parameters leave cells empty.
        columns = [*objectives, f"tags.`{INTERVAL}`", *swept, f"tags.`{STATE}`"]
        mine = f"tags.`{STUDY_RUN}` = '{self.run_id}'"
        # For trials with several seeds, the view shows their group runs.
        trials = f"tags.`{ROLE}` = 'trial'" if len(self.spec.seeds) > 1 else f"tags.`{TRIAL}` LIKE '%'"
        ascending = self.spec.objectives[0].direction == "minimize"
        view = saved_view("trials, best first", columns, objectives[0], ascending, f"{mine} AND {trials}")
        key = VIEW_TAG + view_key(self.spec.name)
        set_shared_tag(self._client.set_experiment_tag, self.experiment_id, key, view)

    def finish(self, summary: StudySummary) -> None:
        """Update the page with the logged figures, after the thread has ended."""
        if self._thread.is_alive():  # the store does not answer
            return
        with self._reported():
            # In this thread, so that the command does not end before it is done.
            self.save_view()
            self.write(summary, figures=True)
            self._show_mistakes(summary)
            self._rename(summary)

    def _work(self) -> None:
        with self._reported():
            self.save_view()
        is_last = False
        while not is_last:
            self._changed.wait()
            self._changed.clear()
            is_last = self._closing.is_set()  # read before the pending change, so that the last change is written
            with self._lock:  # `update` may be called at the same time
                summary, self._pending = self._pending, None
            if summary is not None:
                with self._reported():
                    self.write(summary)
            # Changes during this pause are combined; closing ends the pause.
            self._closing.wait(PAUSE)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Report the first error of the store, and continue."""
        try:
            yield
        except Exception as error:  # each kind of store has its own exceptions
            if not self._failed:
                self._failed = True
                note(f"the study's page is not up to date: {reason(error)}")

    def _find_shown(self) -> set[int]:
        """The trials whose runs an earlier sweep has already updated; found by a single search."""
        runs = search_runs(self._client, f"tags.`{STUDY_RUN}` = '{self.run_id}'", [self.experiment_id])
        return {
            int(run.data.tags[TRIAL])
            for run in runs
            if TRIAL in run.data.tags and (INTERVAL in run.data.tags or PRUNED_MARK in (run.info.run_name or ""))
        }

    def _show_trial(self, summary: StudySummary, trial: FrozenTrial) -> None:
        """Update a trial's run: the interval of its result, or a mark in its name if it was pruned."""
        if (run_id := trial_run(trial)) is None:
            return
        if trial.state == COMPLETE:
            limits = bounds(summary, trial, self.images or self._count_images(trial))
            if limits is not None:
                # Short, since the UI shows about ten characters; the value itself is in another column.
                set_shared_tag(self._client.set_tag, run_id, INTERVAL, f"± {(limits[1] - limits[0]) / 2:.2g}")
        elif trial.state == PRUNED:
            # In the name, since it is the only column that is always shown.
            of_seed = run_id == next(iter(runs(trial)), None) and len(summary.seeds) > 1
            seed = summary.seeds[0] if of_seed else None
            name = run_name(trial.number, point(trial), summary.budget, seed, PRUNED_MARK)
            self._client.update_run(run_id, name=name)

    def _rename(self, summary: StudySummary) -> None:
        """Put the most important parameter first in the runs' names, of which the UI shows about 20 characters.

        Only for the best RENAMED trials, which are on the first page of the UI, since each takes a request.
        """
        if (importances := estimate_importances(summary)) is None:
            return
        ranked = best_first(summary)
        known = {trial.number for trial in ranked}
        others = [trial for trial in summary.finished if trial.number not in known]
        for trial in [*ranked, *others][:RENAMED]:
            run_id, mark = trial_run(trial), PRUNED_MARK if trial.state == PRUNED else ""
            if run_id is None or (len(summary.seeds) > 1 and run_id in runs(trial)):
                continue
            # Always renamed, since another parameter may have been the most important one in an earlier sweep.
            name = run_name(trial.number, point(trial), summary.budget, None, mark, importances.shares)
            self._client.update_run(run_id, name=name)

    def _show_mistakes(self, summary: StudySummary) -> None:
        """Add the figure of the best trial's predictions to its run's description."""
        ranked = best_first(summary)
        # The last figure belongs to the best trial, if it has one.
        for run_id, path in self._find_figures(ranked)[-1:]:
            text = self._client.get_run(run_id).data.tags.get(DESCRIPTION, "")
            if run_id != self.run_id and text and (shown := image(run_id, path)) not in text:
                set_shared_tag(self._client.set_tag, run_id, DESCRIPTION, join([text, shown]))

    def _count_images(self, trial: FrozenTrial) -> int | None:
        """Number of validation images of a trial's run; None if unknown."""
        for run_id in runs(trial)[:1]:
            inputs = self._client.get_run(run_id).inputs
            for dataset in inputs.dataset_inputs if inputs else ():
                profile: Mapping[str, int] = json.loads(dataset.dataset.profile or "{}")
                self.images = profile.get("val")
        return self.images

    def _find_figures(self, ranked: list[FrozenTrial]) -> list[tuple[str, str]]:
        """The figure of the study and that of its best trial's predictions, if they have been logged."""
        found = []
        for run_id, names in (
            (self.run_id, FIGURES),
            *((run_id, MISTAKES) for trial in ranked[:1] for run_id in runs(trial)[:1]),
        ):
            # One request per run; the first of its figures that exists is used.
            there = {item.path for item in self._client.list_artifacts(run_id, "figures")}
            found += [(run_id, f"figures/{name}") for name in names if f"figures/{name}" in there][:1]
        return found


def set_shared_tag(set_tag: Callable[..., object], owner: str, name: str, value: str) -> None:
    """Set a tag of a run or an experiment that other tasks of an array may set at the same time."""
    try:
        set_tag(owner, name, value)
    except Exception as error:  # each kind of store has its own exceptions
        # MLflow (3.17) searches for the tag and then inserts it, which succeeds in only one of the tasks. In the
        # second attempt the tag exists.
        if "unique constraint" not in str(error).lower():
            raise
        set_tag(owner, name, value)
