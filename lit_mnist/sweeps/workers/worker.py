"""A worker: a process that works on one trial after the other until the study has none left for it."""

import contextlib
import gc
import os
import time

import optuna
import torch
from optuna.trial import Trial

from lit_mnist.errors import Interrupted
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.heartbeats import Heartbeats
from lit_mnist.sweeps.study.leases import MAX_RELEASES, Leases
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import MAX_VALIDATIONS, RUNNING, get_trials, is_out_of_time, stored_spec
from lit_mnist.sweeps.workers.errors import ReleasedError, is_infrastructure_error, is_outage, reason_of
from lit_mnist.sweeps.workers.parent_watch import ParentWatch
from lit_mnist.sweeps.workers.trial import TrialPlan, TrialWork, measure
from lit_mnist.terminal import note
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.store import StoreError, connect, find_store
from lit_mnist.training.gc_freeze import gc_freeze

PAUSE = 1.0
"""Seconds between two looks for a trial that somebody has left."""


def run_worker(name: str, number: int, threads: int) -> None:
    """Work on study `name` as worker `number`, once the supervisor says so and as long as it lives.

    Raises:
        Interrupted: a signal came, or the supervisor is gone.
        UserError: the storage or the tracking store is gone.

    """
    torch.set_num_threads(threads)
    with SignalWatch() as watch:
        leash = ParentWatch(watch)
        with contextlib.suppress(StoreError):  # whoever needs it will say so
            connect(find_store())  # a first connection takes a moment, which the supervisor takes for its checks
        leash.wait()
        watch.check()
        study = open_study(open_storage(None), name)
        work_on(study, watch, number)


def work_on(study: optuna.Study, watch: SignalWatch, worker: int = 0) -> None:
    """Carry out trials until each has come to its end and no new one is to be asked for.

    Raises:
        Interrupted: a signal came; the trial in hand is left as it is saved.

    """
    spec = stored_spec(study)
    extent = measure(spec, study.user_attrs.get(MAX_VALIDATIONS))
    leases = Leases(study, spec, worker, extent.validations)
    settle = GlobalStateGuard()
    with gc_freeze():
        while True:
            watch.check()
            trial = leases.acquire()
            if trial is not None:
                _work(leases, trial, watch, extent)
                settle()
            elif _is_over(study, spec):
                return
            else:
                time.sleep(PAUSE)


def _work(leases: Leases, trial: Trial, watch: SignalWatch, extent: TrialPlan) -> None:
    try:
        with Heartbeats(leases, trial):
            TrialWork(leases.study, leases.spec, trial, watch, extent).do()
    except BusyError as error:
        leases.release(trial)
        note(f"trial {trial.number} waits: {error}")
        time.sleep(2 * PAUSE)
    except Interrupted:
        leases.release(trial)
        raise
    except Exception as error:
        if is_infrastructure_error(error) and not is_outage(error):
            reason = reason_of(error)
            count = leases.release_after_error(trial, reason)
            note(f"trial {trial.number} is released ({count} of {MAX_RELEASES} times): {reason}")
            # The next one gets a fresh process: this one may be short of memory or of open files.
            raise ReleasedError(reason) from error
        with contextlib.suppress(Exception):  # the first error is the one that counts
            leases.release(trial)
        raise


def _is_over(study: optuna.Study, spec: Spec) -> bool:
    """Whether nobody's trial can be left to this worker any more."""
    trials = get_trials(study)
    if any(trial.state == RUNNING for trial in trials):
        return False
    return len(trials) >= study.user_attrs["trials"] or is_out_of_time(study, spec)


class GlobalStateGuard:
    """Puts back what one trial may have changed for the next: the environment, and torch's global settings."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._threads = torch.get_num_threads()

    def __call__(self) -> None:
        """Put everything back, and free the memory."""
        os.environ.clear()
        os.environ.update(self._environment)
        torch.set_num_threads(self._threads)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
