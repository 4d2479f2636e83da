"""`lit-mnist sweep`: a study is checked, opened, worked on by several processes, and summed up."""

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.results.parent_run import log_summary
from lit_mnist.sweeps.results.progress import ProgressDisplay
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import Spec, load_spec
from lit_mnist.sweeps.search.validation import check
from lit_mnist.sweeps.study.locks import study_lock
from lit_mnist.sweeps.study.storage import default_storage, open_storage, open_study
from lit_mnist.sweeps.study.study import (
    add_time_spent,
    check_stored,
    create_or_open_study,
    experiment_name,
    is_finished,
    is_out_of_time,
)
from lit_mnist.sweeps.study.trial_runs import ROLE, STUDY_RUN
from lit_mnist.sweeps.workers.pool import WorkerPool, visible_gpus
from lit_mnist.sweeps.workers.trial import measure
from lit_mnist.terminal import say
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.process import this_host
from lit_mnist.tracking.provenance import git_state, package_versions, version_tags
from lit_mnist.tracking.queries.reader import STUDY
from lit_mnist.tracking.run import Run, open_run
from lit_mnist.tracking.store import connect, find_store, import_mlflow
from lit_mnist.training.gc_freeze import gc_freeze

PAUSE = 0.3
"""Seconds between two looks at the study."""
KEEP = 10.0
"""Seconds after which the time that is spent on the study is written down."""


def sweep(path: str, trials: int | None, workers: int, url: str | None) -> None:
    """Carry out what is left of the study that the file `path` describes.

    Args:
        path: The spec.
        trials: How many trials the study is to have in all, instead of what the spec says.
        workers: Processes that carry them out.
        url: Where the study is kept.

    Raises:
        UserError: the spec does not hold, or something that the sweep needs is gone.
        Interrupted: a signal came; the same command goes on.

    """
    spec = load_spec(Path(path))
    if trials is not None:
        spec = spec.with_trials(trials)
    url = url or default_storage()
    with gc_freeze(), SignalWatch() as watch:
        storage = open_storage(url)
        if check_stored(storage, spec) and _is_done(storage, spec):
            _say_done(storage, spec)
            return
        kinds = check(spec)
        import_mlflow()
        watch.check()
        # What workers start from is ready by now, or soon.
        with contextlib.closing(WorkerPool(spec.name, url, workers, _gpus_to_share(spec))) as team:
            study = create_or_open_study(storage, spec, max((kind.validations for kind in kinds), default=None))
            with study_run(study, spec) as run:
                _carry_out(study, spec, team, run, watch)


def _is_done(storage: BaseStorage, spec: Spec) -> bool:
    """Whether no trial is left of the study."""
    study = open_study(storage, spec.name)
    return study.user_attrs.get("trials") == spec.trials and is_finished(study)


def _say_done(storage: BaseStorage, spec: Spec) -> None:
    """Say that the study is finished; sum it up if whoever finished it could not."""
    study = open_study(storage, spec.name)
    if study.user_attrs.get("summed") != spec.trials:
        with study_run(study, spec) as run:
            _sum_up(study, run)
    say(f"{ProgressDisplay(study, spec, 0).closing()}: finished, nothing left to do; a higher --trials adds more")


def _carry_out(study: optuna.Study, spec: Spec, team: WorkerPool, run: Run, watch: SignalWatch) -> None:
    """Let the team work until the study is finished, or a signal comes."""
    clock = _Clock(study)
    with ProgressDisplay(study, spec, team.workers) as board:
        team.go()
        try:
            while team.look(lambda: is_finished(study)):
                if watch.received is not None:
                    team.end(watch.received)
                    break
                if board.update():
                    team.progress()
                if is_finished(study):
                    team.close(finished=True)
                    break
                clock.keep()
                time.sleep(PAUSE)
        except BaseException:
            team.end(signal.SIGTERM)
            raise
        finally:
            clock.keep(now=True)
        board.update()
    say(board.closing() + _what_is_next(study, spec, watch))
    _sum_up(study, run)
    if not is_finished(study):
        watch.check()


def _sum_up(study: optuna.Study, run: Run) -> None:
    log_summary(study, run)
    if is_finished(study):
        study.set_user_attr("summed", study.user_attrs["trials"])


def _what_is_next(study: optuna.Study, spec: Spec, watch: SignalWatch) -> str:
    if watch.received is not None:
        return "; the same command goes on"
    if not is_finished(study) and is_out_of_time(study, spec):
        return f"; its {spec.hours:g} hours are over"
    return ""


@contextmanager
def study_run(study: optuna.Study, spec: Spec) -> Iterator[Run]:
    """The study's own run; of several sweeps on one study the first one keeps it RUNNING."""
    name = study.study_name
    with study_lock(storage_of(study), name):
        run_id = study.user_attrs.get("run_id")
        opened = contextlib.ExitStack()
        run = opened.enter_context(_new_run(name) if run_id is None else _former_run(run_id))
        if run_id is None:
            study.set_user_attr("experiment", run.experiment)
            study.set_user_attr("run_id", run.id)
    with opened:
        if run_id is None:
            run.log_params({"sampler": spec.sampler, "pruner": spec.pruner, "seeds": list(spec.seeds)})
        run.log_text(spec.text, "spec.yaml")
        run.set_tags({**git_state(), **version_tags(package_versions()), STUDY_RUN: run.id})
        yield run
        if is_finished(study):
            run.uploader.flush()
            run.client.set_terminated(run.id, "FINISHED")


def _new_run(name: str) -> contextlib.AbstractContextManager[Run]:
    return open_run(experiment_name(name), name, system_metrics=False, tags={STUDY: name, ROLE: "study"})


@contextmanager
def _former_run(run_id: str) -> Iterator[Run]:
    """The study's run again, as its owner or, beside another sweep that lives, as a visitor."""
    with contextlib.ExitStack() as opened:
        yield _taken(run_id, opened)


def _taken(run_id: str, opened: contextlib.ExitStack) -> Run:
    info = connect(find_store()).get_run(run_id)
    if info.info.status != "RUNNING" or info.data.tags.get("host") == this_host():
        with contextlib.suppress(BusyError):
            return opened.enter_context(open_run("", run_id=run_id, system_metrics=False, resume=True))
    return opened.enter_context(open_run("", run_id=run_id))


def _gpus_to_share(spec: Spec) -> list[str]:
    """The GPUs of which each worker is to have one for its own: none, if a trial takes several itself."""
    found = visible_gpus()
    return [] if found and measure(spec).several else found


class _Clock:
    """Adds up how long the study has been worked on, over all starts and machines."""

    def __init__(self, study: optuna.Study) -> None:
        self._study, self._since = study, time.monotonic()

    def keep(self, now: bool = False) -> None:
        """Write it down, unless that was done a moment ago."""
        passed = time.monotonic() - self._since
        if now or passed >= KEEP:
            self._since += passed
            add_time_spent(self._study, passed)
