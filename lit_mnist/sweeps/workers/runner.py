"""`lit-mnist sweep` from start to end: create the study, launch its workers, monitor them, summarise the study."""

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.resources import visible_gpus
from lit_mnist.sweeps.results.parent_run import log_summary
from lit_mnist.sweeps.results.progress import ProgressDisplay
from lit_mnist.sweeps.results.study_page import StudyPage
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
from lit_mnist.sweeps.study.summary import read_summary
from lit_mnist.sweeps.workers.launcher import Launcher
from lit_mnist.sweeps.workers.pool import WorkerPool
from lit_mnist.sweeps.workers.trial import plan_trials
from lit_mnist.terminal import say
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.pages import show_page
from lit_mnist.tracking.process import this_host
from lit_mnist.tracking.provenance import git_state, package_versions, version_tags
from lit_mnist.tracking.queries.reader import ROLE, STUDY, STUDY_RUN
from lit_mnist.tracking.run import Run, open_run
from lit_mnist.tracking.store import connect, find_store, import_mlflow
from lit_mnist.training.gc_freeze import gc_freeze

POLL_INTERVAL = 0.3
"""Seconds between two looks at the study and its workers."""
TIME_SAVE_INTERVAL = 10.0
"""Seconds after which the time spent on the study is stored; a sweep that is killed loses less than that."""


def sweep(path: str, trials: int | None, workers: int, url: str | None) -> None:
    """Run the trials that are left of the study described in the file `path`.

    Args:
        path: The specification, a YAML file.
        trials: How many trials the study has in all; None for what the specification says.
        workers: How many processes train them.
        url: Where the study is kept; None for the default storage.

    Raises:
        UserError: the specification is wrong, or something that the sweep needs is missing.
        Interrupted: a signal came; the same command continues the study.

    """
    spec = load_spec(Path(path))
    if trials is not None:
        spec = spec.with_trials(trials)
    url = url or default_storage()
    with gc_freeze(), SignalWatch() as signals:
        storage = open_storage(url)
        if check_stored(storage, spec) and _report_if_finished(storage, spec):
            return
        probes = check(spec)
        import_mlflow()
        signals.check()
        with contextlib.closing(make_launcher(spec, url, workers)) as launcher:
            # The workers' processes start up while the study and its run are created.
            validations = max((probe.validations for probe in probes), default=None)
            study = create_or_open_study(storage, spec, validations)
            with study_run(study, spec) as run:
                address = show_page(run.store, run.experiment_id, run.id)
                say(address)
                page = StudyPage(study, spec)
                with page:
                    _monitor(study, spec, launcher, signals, page)
                # After a signal the time may be short: SLURM kills a job 30 s later (KillWait), and drawing the
                # figures of a large study can take longer. The sweep that continues the study draws them.
                if not is_finished(study):
                    signals.check()
                _summarise(study, run)
            page.finish(read_summary(study))  # after the run has uploaded its figures
            say(address)


def make_launcher(spec: Spec, url: str, workers: int) -> Launcher:
    """Return what runs the workers of the study: processes on this machine."""
    gpus = visible_gpus()
    if gpus and plan_trials(spec).is_distributed:
        gpus = []  # each trial takes several GPUs, so its worker has to see all of them
    return WorkerPool(spec.name, url, workers, gpus)


def _monitor(study: optuna.Study, spec: Spec, launcher: Launcher, signals: SignalWatch, page: StudyPage) -> None:
    """Start the workers, and show their progress until the study is finished or a signal comes."""
    since = time.monotonic()

    def save_time(interval: float = 0.0) -> None:
        nonlocal since
        if (passed := time.monotonic() - since) >= interval:
            since += passed
            add_time_spent(study, passed)

    with ProgressDisplay(study, spec, launcher.workers) as display:
        launcher.start()
        has_progressed, finished = False, -1
        try:
            while launcher.poll(has_progressed, lambda: is_finished(study)):
                if signals.received is not None:
                    launcher.signal(signals.received)
                    launcher.close()
                    break
                has_progressed = display.update()
                if finished != (finished := len((summary := read_summary(study)).finished)):
                    page.update(summary)
                if is_finished(study):
                    launcher.close(kill=True)
                    break
                save_time(TIME_SAVE_INTERVAL)
                time.sleep(POLL_INTERVAL)
        except BaseException:
            launcher.signal(signal.SIGTERM)
            launcher.close()
            raise
        finally:
            save_time()
        display.update()
        page.update(read_summary(study))
    what_next = ""
    if signals.received is not None:
        what_next = "; the same command goes on"
    elif not is_finished(study) and is_out_of_time(study, spec):
        what_next = f"; its {spec.hours:g} hours are over"
    say(display.closing() + what_next)


def _summarise(study: optuna.Study, run: Run) -> None:
    """Log tables and figures to the study's run, and store for how many trials a finished study has them."""
    log_summary(study, run)
    if is_finished(study):
        study.set_user_attr("summed", study.user_attrs["trials"])


def _report_if_finished(storage: BaseStorage, spec: Spec) -> bool:
    """Return False if trials are left. Otherwise say that there are none, and add a summary that is missing."""
    study = open_study(storage, spec.name)
    if study.user_attrs.get("trials") != spec.trials or not is_finished(study):
        return False
    if study.user_attrs.get("summed") != spec.trials:  # the sweep that finished it was killed before its summary
        with study_run(study, spec) as run:
            _summarise(study, run)
        StudyPage(study, spec).finish(read_summary(study))
    say(f"{ProgressDisplay(study, spec, 0).closing()}: finished, nothing left to do; a higher --trials adds more")
    return True


@contextmanager
def study_run(study: optuna.Study, spec: Spec) -> Iterator[Run]:
    """Open the study's own MLflow run, which is RUNNING as long as the first of its sweeps works."""
    name = study.study_name
    with contextlib.ExitStack() as opened:
        # Two first sweeps that start at once must not create two runs.
        with study_lock(storage_of(study), name):
            run_id = study.user_attrs.get("run_id")
            if run_id is None:
                tags = {STUDY: name, ROLE: "study"}
                run = opened.enter_context(open_run(experiment_name(name), name, system_metrics=False, tags=tags))
                study.set_user_attr("experiment", run.experiment)
                study.set_user_attr("run_id", run.id)
            else:
                run = _reopen_run(run_id, opened)
        if run_id is None:
            run.log_params({"sampler": spec.sampler, "pruner": spec.pruner, "seeds": list(spec.seeds)})
        if "experiment_id" not in study.user_attrs:  # for `sweep status`, which does not ask the tracking store
            study.set_user_attr("experiment_id", run.experiment_id)
        run.log_text(spec.text, "spec.yaml")
        run.set_tags({**git_state(), **version_tags(package_versions()), STUDY_RUN: run.id})
        yield run
        if is_finished(study):
            # Also where another sweep owns the run: it may have been killed, and nobody else would end the run.
            run.uploader.flush()
            run.client.set_terminated(run.id, "FINISHED")


def _reopen_run(run_id: str, opened: contextlib.ExitStack) -> Run:
    """Open the study's run again, as its owner or, beside another sweep that works on the study, as a guest."""
    stored = connect(find_store()).get_run(run_id)
    if stored.info.status != "RUNNING" or stored.data.tags.get("host") == this_host():
        with contextlib.suppress(BusyError):  # a living process of this machine holds the lock of the run's folder
            return opened.enter_context(open_run("", run_id=run_id, system_metrics=False, resume=True))
    return opened.enter_context(open_run("", run_id=run_id))
