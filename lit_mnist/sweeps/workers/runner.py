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
"""Seconds between two looks at the workers, and at a study in a file."""
SERVER_INTERVAL = 2.0
"""Seconds between two looks at a study on a server, which may have hundreds of sweeps to answer."""
TIME_SAVE_INTERVAL = 10.0
"""Seconds after which the time spent on the study is stored; a sweep that is killed loses less than that."""


def sweep(
    given: str, trials: int | None, workers: int, url: str | None, keep: KeepCheckpoints | None = None
) -> None:
    """Run the trials that are left of a study.

    Args:
        given: The specification, a YAML file, or the name of a stored study.
        trials: How many trials the study has in all; None for what the specification says.
        workers: How many processes train them.
        url: Where the study is kept; None for the default storage.
        keep: Checkpoints that a trial keeps once it has ended; None for what the specification says.

    Raises:
        UserError: the specification is wrong, or something that the sweep needs is missing.
        Interrupted: a signal came; the same command continues the study.

    """
    run_spec(find_spec(given, url), workers, url, trials, keep)


def run_spec(
    spec: Spec, workers: int, url: str | None, trials: int | None = None, keep: KeepCheckpoints | None = None
) -> None:
    """Run the trials that are left of the study of `spec`; arguments and errors are those of `sweep`."""
    url = url or default_storage()
    trials = spec.trials if trials is None else trials
    spec.check_trials(trials)
    with gc_freeze(), SignalWatch() as signals:
        # Everything that can be refused is refused before the first worker trains.
        storage = open_storage(url)
        if check_stored(storage, spec, trials) and _report_if_finished(storage, spec, trials):
            return
        probes = check(spec)
        check_machine(spec, probes)
        # Takes seconds: only now that the specification is known to be right.
        import_mlflow()
        signals.check()
        with one_host(storage) as renew, contextlib.closing(make_launcher(spec, url, workers)) as launcher:
            # The workers' processes start up while the study and its run are created.
            validations = max((probe.validations for probe in probes), default=None)
            study = create_or_open_study(storage, spec, validations, trials, keep)
            with study_run(study, spec) as run:
                address = show_page(run.run.store, run.run.experiment_id, run.run.id)
                say(address)
                page = StudyPage(study, spec)
                with page:
                    _monitor(study, spec, run, launcher, signals, renew, page)
                # After a signal the time may be short: SLURM kills a job 30 s later (KillWait), and drawing the
                # figures of a large study can take longer. The sweep that continues the study draws them.
                if not is_finished(study):
                    signals.check()
                if not is_over(study, spec):
                    # Workers end while trials are left only if the job has no time for them.
                    raise reason_to_stop(get_trials(study)) or JobEndsError("trials are left")
                _summarise(study, run)
            summary = read_summary(study)
            page.finish(summary)  # after the run has uploaded its figures
            say("\n".join(closing_lines(summary, address, page.images)))


def make_launcher(spec: Spec, url: str, workers: int) -> Launcher:
    """Return what runs the workers of the study: processes on this machine.

    Raises:
        UsageError: this machine has too few GPUs for that many workers.

    """
    # Each worker sees its own GPUs only, so that every trial can take "the first one".
    gpus = visible_gpus()
    plan = plan_trials(spec) if gpus else None  # parses a configuration, which takes a tenth of a second
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
        signals: Where signals are noted.
        renew: Called now and then; shows that this machine uses the study.
        page: The study's page in MLflow's UI.

    """
    with ProgressDisplay(study, spec, launcher.workers) as display, _time_spent(study) as save_time:
        # Only now: study and run exist, to which the workers write.
        launcher.start()
        is_server = cast(RetryingStorage, storage_of(study)).engine is not None
        has_progressed, next_look, finished = False, 0.0, -1
        try:
            while launcher.poll(has_progressed, lambda: is_finished(study)):
                # Passed on, since workers are in sessions of their own, and then waited for: each saves its trial.
                if signals.received is not None:
                    launcher.signal(signals.received)
                    launcher.close()
                    break
                has_progressed = False
                # The workers are looked at each time, the study less often: reading it costs the server something.
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + (SERVER_INTERVAL if is_server else 0)
                    has_progressed = display.update()
                    # The page costs requests to the tracking store: only when a trial has ended.
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
            # Whatever went wrong here: each worker saves its trial, which the next sweep goes on with.
            launcher.signal(signal.SIGTERM)
            launcher.close()
            raise
        display.update()
        page.update(read_summary(study))
    # Of a finished study the best point follows once its figures are drawn.
    best = "" if is_finished(study) else display.best()
    say("; ".join(filter(None, [display.closing(), best, _what_next(study, spec, signals)])))


@contextlib.contextmanager
def _time_spent(study: optuna.Study) -> Iterator[Callable[[], None]]:
    """Add the time inside to what is spent on the study; yields a function that stores it every few seconds."""
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


def _what_next(study: optuna.Study, spec: Spec, signals: SignalWatch) -> str:
    """The end of a sweep's last line: why the study is not finished, if it is not."""
    if signals.received is not None:
        return "the same command continues it"
    if not is_finished(study) and is_out_of_time(study, spec):
        return f"its {spec.hours:g} hours are over"
    return ""


def _summarise(study: optuna.Study, run: StudyRun) -> None:
    """Log the study's state to its run, and store how many trials the summary of a finished study covers."""
    # All sweeps of a study end at once, and one of them summarises it. Not under the lock of the study, since
    # figures take seconds.
    with study_lock(storage_of(study), f"{study.study_name} summary"):
        finished = is_finished(study)
        if finished and study.user_attrs.get("summed") == study.user_attrs["trials"]:
            return
        log_summary(study, run.run)
        if finished:
            study.set_user_attr("summed", study.user_attrs["trials"])


def _report_if_finished(storage: BaseStorage, spec: Spec, trials: int) -> bool:
    """Return False if trials are left. Otherwise say that there are none, and add a summary that is missing."""
    study = open_study(storage, spec.name)
    if study.user_attrs.get("trials") != trials or not is_finished(study):
        return False
    if study.user_attrs.get("summed") != trials:  # the sweep that finished it was killed before its summary
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
