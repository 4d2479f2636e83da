"""A worker: leases one trial after another and trains it, until the study has none left."""

import contextlib
import gc
import os
import time

import optuna
import torch
from optuna.trial import Trial

from lit_mnist.errors import Interrupted
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.study.heartbeats import Heartbeats
from lit_mnist.sweeps.study.job_time import reason_to_stop
from lit_mnist.sweeps.study.leases import MAX_RELEASES, Leases
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import MAX_VALIDATIONS, get_trials, is_over, stored_spec
from lit_mnist.sweeps.workers.errors import (
    ReleasedError,
    affects_all_trials,
    describe_error,
    is_infrastructure_error,
)
from lit_mnist.sweeps.workers.parent_watch import ParentWatch
from lit_mnist.sweeps.workers.trial import TrialPlan, TrialWork, plan_trials
from lit_mnist.terminal import note
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.store import StoreError, connect, find_store
from lit_mnist.training.gc_freeze import gc_freeze

IDLE_INTERVAL = 1.0
"""Seconds between two looks for a trial, while others work on all that are left: one of them may die."""


def run_worker(name: str, number: int, threads: int) -> None:
    """Work on a study once the sweep that started this process says so, and as long as it lives.

    Args:
        name: The study.
        number: This worker's number on this machine.
        threads: Threads to compute with.

    Raises:
        Interrupted: a signal came, or the sweep is dead.
        UserError: the storage or the tracking store cannot be used, or a trial was released after an error.

    """
    # Its share of the cores: more threads than cores make every worker slower.
    torch.set_num_threads(threads)
    with SignalWatch() as signals:
        parent = ParentWatch(signals)
        # The first connection of a process takes a second, during which the sweep still checks the specification.
        # If it fails, whoever needs the store reports that.
        with contextlib.suppress(StoreError):
            connect(find_store())
        parent.wait()
        signals.check()
        work_on(open_study(open_storage(None), name), signals, number)


def work_on(study: optuna.Study, signals: SignalWatch, worker: int = 0) -> None:
    """Train trials until all have ended and no new one may start.

    Raises:
        Interrupted: a signal came; the current trial is saved and released.
        ReleasedError: the current trial was released after an error.
        UserError: the storage or the tracking store cannot be used.

    """
    # From the study and not from a file, which may have changed since: all workers of all machines have the same.
    spec = stored_spec(study)
    plan = plan_trials(spec, study.user_attrs.get(MAX_VALIDATIONS))
    leases = Leases(study, spec, worker, plan.validations)
    state = GlobalStateGuard()
    with gc_freeze():
        while True:
            signals.check()
            if reason_to_stop(get_trials(study)) is not None:
                return  # the sweep says why
            trial = leases.acquire()
            if trial is not None:
                _work_on_trial(leases, trial, signals, plan)
                state.restore()
            # Not merely "nothing to lease": a running trial may have to be taken over yet.
            elif is_over(study, spec):
                return
            else:
                time.sleep(IDLE_INTERVAL)


def _work_on_trial(leases: Leases, trial: Trial, signals: SignalWatch, plan: TrialPlan) -> None:
    """Train the trial; release it if it cannot be ended here."""
    try:
        with Heartbeats(leases, trial):
            TrialWork(leases, leases.suggest(trial), signals, plan).run()
    except BusyError as error:
        # The trial's run is still locked: its last worker was taken for dead, or is about to end. Wait a moment,
        # or this worker would lease the same trial at once.
        leases.release(trial)
        note(f"trial {trial.number} waits: {error}")
        time.sleep(2 * IDLE_INTERVAL)
    # Its checkpoint is saved. Released, so that the next worker need not wait until this one counts as dead.
    except Interrupted:
        leases.release(trial)
        raise
    except Exception as error:
        if is_infrastructure_error(error) and not affects_all_trials(error):
            reason = describe_error(error)
            count = leases.release_after_error(trial, reason)
            note(f"trial {trial.number} is released ({count} of {MAX_RELEASES} times): {reason}")
            # This process may be short of memory or of open files: the next trial gets a fresh one.
            raise ReleasedError(reason) from error
        with contextlib.suppress(Exception):  # the storage may be the one that failed; the first error is raised
            leases.release(trial)
        raise


class GlobalStateGuard:
    """Restores what a trial may change for the next one: environment variables and torch's global settings."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._threads = torch.get_num_threads()

    def restore(self) -> None:
        """Restore the state at construction, and free unused memory."""
        os.environ.clear()
        os.environ.update(self._environment)
        torch.set_num_threads(self._threads)
        # What `trainer.precision`, `trainer.deterministic` and `trainer.benchmark` of a trial have changed.
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
        # A Trainer is full of reference cycles: until they are collected, its tensors stay on the device.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
