"""A worker: leases trials and trains them one after another, until the study has no trials left."""

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
"""Seconds between two attempts to lease a trial while others work on the remaining ones, which may be released."""


def run_worker(name: str, number: int, threads: int) -> None:
    """Work on a study, from the start signal of the sweep that started this process until that sweep ends.

    Args:
        name: The study.
        number: This worker's number on this machine.
        threads: Number of threads for computing.

    Raises:
        Interrupted: a signal came, or the sweep is dead.
        UserError: the storage or the tracking store cannot be used, or a trial was released after an error.

    """
    # The worker's share of the cores, since more threads than cores make all workers slower.
    torch.set_num_threads(threads)
    with SignalWatch() as signals:
        parent = ParentWatch(signals)
        # The first connection takes a second, so it is made while the sweep still checks the specification. An
        # error is reported later, when the store is used.
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
    # From the study, so that all workers on all machines have the same specification, even if the file has
    # changed.
    spec = stored_spec(study)
    plan = plan_trials(spec, study.user_attrs.get(MAX_VALIDATIONS))
    leases = Leases(study, spec, worker, plan.validations)
    state = GlobalStateGuard()
    with gc_freeze():
        while True:
            signals.check()
            if reason_to_stop(get_trials(study)) is not None:
                return  # the sweep reports the reason
            trial = leases.acquire()
            if trial is not None:
                _work_on_trial(leases, trial, signals, plan)
                state.restore()
            # Having nothing to lease is not enough: a running trial may still have to be taken over.
            elif is_over(study, spec):
                return
            else:
                time.sleep(IDLE_INTERVAL)


def _work_on_trial(leases: Leases, trial: Trial, signals: SignalWatch, plan: TrialPlan) -> None:
    """Train the trial; release it if it cannot be completed here."""
    try:
        with Heartbeats(leases, trial):
            TrialWork(leases, leases.suggest(trial), signals, plan).run()
    except BusyError as error:
        # The trial's run is still locked, because its last worker is about to end or was wrongly considered dead.
        # Wait, since this worker would otherwise lease the same trial again at once.
        leases.release(trial)
        note(f"trial {trial.number} waits: {error}")
        time.sleep(2 * IDLE_INTERVAL)
    # The checkpoint is saved. Release the trial, so that the next worker need not wait until this one counts as
    # dead.
    except Interrupted:
        leases.release(trial)
        raise
    except Exception as error:
        if is_infrastructure_error(error) and not affects_all_trials(error):
            reason = describe_error(error)
            count = leases.release_after_error(trial, reason)
            note(f"trial {trial.number} is released ({count} of {MAX_RELEASES} times): {reason}")
            # This process may lack memory or file descriptors, so the next trial gets a new process.
            raise ReleasedError(reason) from error
        with contextlib.suppress(Exception):  # the storage may have failed; raise the first error
            leases.release(trial)
        raise


class GlobalStateGuard:
    """Restores global state that a trial may change: environment variables and torch's settings."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._threads = torch.get_num_threads()

    def restore(self) -> None:
        """Restore the state at construction, and free unused memory."""
        # Not cleared first: other threads, such as that of the study's page, may be reading a variable.
        for name in os.environ.keys() - self._environment.keys():
            del os.environ[name]
        os.environ.update(self._environment)
        torch.set_num_threads(self._threads)
        # Settings that `trainer.precision`, `trainer.deterministic` and `trainer.benchmark` change.
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
        # A Trainer has many reference cycles; until they are collected, its tensors stay on the device.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
