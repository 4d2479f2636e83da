"""`lit-mnist sweep` from start to end: create the study, launch its workers, monitor them, summarise the study."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import cast

import optuna
from optuna.storages import BaseStorage

from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.resources import visible_gpus, worker_gpus
from lit_mnist.sweeps.results.description import closing_lines
from lit_mnist.sweeps.results.parent_run import log_summary
from lit_mnist.sweeps.results.progress import ProgressDisplay
from lit_mnist.sweeps.results.study_page import StudyPage
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.search.spec_file import KeepCheckpoints
from lit_mnist.sweeps.search.validation import check, check_machine
from lit_mnist.sweeps.study.job_time import JobEndsError, reason_to_stop
from lit_mnist.sweeps.study.locks import one_host, study_lock
from lit_mnist.sweeps.study.retry import RetryingStorage
from lit_mnist.sweeps.study.storage import default_storage, open_storage, open_study
from lit_mnist.sweeps.study.study import (
    add_time_spent,
    check_stored,
    create_or_open_study,
    find_spec,
    get_trials,
    is_finished,
    is_out_of_time,
    is_over,
)
from lit_mnist.sweeps.study.study_run import StudyRun, study_run
from lit_mnist.sweeps.study.summary import read_summary
from lit_mnist.sweeps.workers.launcher import Launcher
from lit_mnist.sweeps.workers.pool import WorkerPool
from lit_mnist.sweeps.workers.trial import plan_trials
from lit_mnist.terminal import say
from lit_mnist.tracking.pages import show_page
from lit_mnist.tracking.store import find_store, import_mlflow
from lit_mnist.training.gc_freeze import gc_freeze

POLL_INTERVAL = 0.3
"""Seconds between two checks of the workers, and of a study in a file."""
SERVER_INTERVAL = 2.0
"""Seconds between two checks of a study on a server, which may serve hundreds of sweeps."""
TIME_SAVE_INTERVAL = 10.0
"""Seconds between two updates of the time spent on the study, and so the most that a killed sweep loses."""


def sweep(
    given: str, trials: int | None, workers: int, url: str | None, keep: KeepCheckpoints | None = None
) -> None:
    """Run the remaining trials of a study.

    Args:
        given: A YAML file with the specification, or the name of a stored study.
        trials: Total number of trials of the study; None for the number in the specification.
        workers: Number of worker processes.
        url: Where the study is kept; None for the default storage.
        keep: Checkpoints that a trial keeps after its end; None for the value in the specification.

    Raises:
        UserError: the specification is wrong, or something that the sweep needs is missing.
        Interrupted: a signal came; the same command continues the study.

    """
    run_spec(find_spec(given, url), workers, url, trials, keep)


def run_spec(
    spec: Spec, workers: int, url: str | None, trials: int | None = None, keep: KeepCheckpoints | None = None
) -> None:
    """Run the remaining trials of the study of `spec`; see `sweep` for arguments and errors."""
    url = url or default_storage()
    trials = spec.trials if trials is None else trials
    spec.check_trials(trials)
    with gc_freeze(), SignalWatch() as signals:
        # All checks come before the first worker trains.
        storage = open_storage(url)
        if check_stored(storage, spec, trials) and _report_if_finished(storage, spec, trials):
            return
        probes = check(spec)
        check_machine(spec, probes)
        # This takes seconds, so it is done only after the specification has been checked.
        import_mlflow()
        signals.check()
        with one_host(storage) as renew, contextlib.closing(make_launcher(spec, url, workers)) as launcher:
            # The worker processes start while the study and its run are created.
            validations = max((probe.validations for probe in probes), default=None)
            study = create_or_open_study(storage, spec, validations, trials, keep)
            with study_run(study, spec) as run:
                address = show_page(run.run.store, run.run.experiment_id, run.run.id)
                say(address)
                page = StudyPage(study, spec)
                with page:
                    _monitor(study, spec, run, launcher, signals, renew, page)
                # After a signal there may be no time for figures: SLURM kills a job 30 s later (KillWait), and
                # drawing those of a large study can take longer. The sweep that continues the study draws them.
                if not is_finished(study):
                    signals.check()
                if not is_over(study, spec):
                    # All workers have ended although trials are left: the job has no time for them.
                    raise reason_to_stop(get_trials(study)) or JobEndsError("trials are left")
                _summarise(study, run)
            summary = read_summary(study)
            page.finish(summary)  # after the run has uploaded its figures
            say("\n".join(closing_lines(summary, address, page.images)))


def make_launcher(spec: Spec, url: str, workers: int) -> Launcher:
    """Return the launcher for the workers of the study, as processes on this machine.

    Raises:
        UsageError: this machine has too few GPUs for that many workers.

    """
    # Each worker sees only its own GPUs, so that every trial can use the first one.
    gpus = visible_gpus()
    plan = plan_trials(spec) if gpus else None  # parsing a configuration takes a tenth of a second
    shares = worker_gpus(gpus, workers, plan.devices) if plan is not None and plan.may_use_gpus else []
    return WorkerPool(spec.name, url, workers, shares)


def _monitor(
    study: optuna.Study,
    spec: Spec,
    run: StudyRun,
    launcher: Launcher,
    signals: SignalWatch,
    renew: Callable[[], None],
    page: StudyPage,
) -> None:
    """Start the workers, and show their progress until the study is finished or a signal comes.

    Args:
        study: The study.
        spec: Its specification.
        run: Its run.
        launcher: Runs the workers.
        signals: The signal watch.
        renew: Called regularly; records that this machine uses the study.
        page: The study's page in MLflow's UI.

    """
    with ProgressDisplay(study, spec, launcher.workers) as display, _time_spent(study) as save_time:
        # The workers begin only now, since they write to the study and its run.
        launcher.start()
        is_server = cast(RetryingStorage, storage_of(study)).engine is not None
        has_progressed, next_look, finished = False, 0.0, -1
        try:
            while launcher.poll(has_progressed, lambda: is_finished(study)):
                # Workers are in their own sessions, so the signal is passed on. Each then saves its trial.
                if signals.received is not None:
                    launcher.signal(signals.received)
                    launcher.close()
                    break
                has_progressed = False
                # A study on a server is read less often than the workers are checked.
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + (SERVER_INTERVAL if is_server else 0)
                    has_progressed = display.update()
                    # The page is updated only when a trial has ended, since it needs requests to the tracking
                    # store.
                    if finished != (finished := len((summary := read_summary(study)).finished)):
                        page.update(summary)
                    run.keep_running(get_trials(study))
                    renew()
                    if is_finished(study):
                        launcher.close(kill=True)
                        break
                    save_time()
                time.sleep(POLL_INTERVAL)
        except BaseException:
            # After any error, each worker saves its trial, and the next sweep continues it.
            launcher.signal(signal.SIGTERM)
            launcher.close()
            raise
        display.update()
        page.update(read_summary(study))
    say(_closing_line(display, study, spec, signals))


def _closing_line(display: ProgressDisplay, study: optuna.Study, spec: Spec, signals: SignalWatch) -> str:
    """The last line of the progress: the state of the study, its best point, and why it is not finished."""
    parts = [display.closing()]
    if not is_finished(study):  # for a finished study, the best point is printed after its figures are drawn
        parts.append(display.best())
    if signals.received is not None:
        parts.append("the same command continues it")
    elif not is_finished(study) and is_out_of_time(study, spec):
        parts.append(f"its {spec.hours:g} hours are over")
    return "; ".join(filter(None, parts))


@contextlib.contextmanager
def _time_spent(study: optuna.Study) -> Iterator[Callable[[], None]]:
    """Add the time inside the block to the study's time; yields a function that stores it every few seconds."""
    since = time.monotonic()

    def save(interval: float = TIME_SAVE_INTERVAL) -> None:
        nonlocal since
        if (passed := time.monotonic() - since) >= interval:
            since += passed
            add_time_spent(study, passed)

    try:
        yield save
    finally:
        save(0.0)


def _summarise(study: optuna.Study, run: StudyRun) -> None:
    """Log the study's state to its run, and store how many trials the summary of a finished study covers."""
    # Only one of several sweeps that end at the same time summarises the study. This has a separate lock, since
    # figures take seconds.
    with study_lock(storage_of(study), f"{study.study_name} summary"):
        finished = is_finished(study)
        if finished and study.user_attrs.get("summed") == study.user_attrs["trials"]:
            return
        log_summary(study, run.run)
        if finished:
            study.set_user_attr("summed", study.user_attrs["trials"])


def _report_if_finished(storage: BaseStorage, spec: Spec, trials: int) -> bool:
    """Return False if trials are left; otherwise print that there are none, and add a missing summary."""
    study = open_study(storage, spec.name)
    if study.user_attrs.get("trials") != trials or not is_finished(study):
        return False
    if study.user_attrs.get("summed") != trials:  # the sweep was killed before the summary
        with study_run(study, spec) as run:
            _summarise(study, run)
        StudyPage(study, spec).finish(read_summary(study))
    most = spec.most_trials()
    adds = "" if most is not None and most <= trials else "; a higher --trials adds more"
    say(f"{ProgressDisplay(study, spec, 0).closing()}: finished, nothing left to do{adds}")
    attributes = study.user_attrs
    address = ""
    if "experiment_id" in attributes:  # a study of version 0.1 has none until it is continued
        address = show_page(find_store(), attributes["experiment_id"], attributes["run_id"])
    say("\n".join(closing_lines(read_summary(study), address)))
    return True
