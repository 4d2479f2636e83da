"""Distinguishes errors of a trial, which then fails, from infrastructure errors, after which it is tried again."""

import errno
import shutil

from lit_mnist.errors import DataError, UserError, one_line
from lit_mnist.sweeps.study.retry import StorageGoneError
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.store import StoreError, find_store

FULL_DISK = 32 * 1024 * 1024
"""Free bytes below which a disk counts as full, since torch and SQLite report failed writes in many ways."""
LIBRARIES = ("mlflow", "sqlalchemy", "requests", "optuna")
"""Libraries whose exceptions concern a store or a server, and never a training."""


class InfrastructureError(UserError):
    """An infrastructure error in the separate process of a distributed trial.

    Args:
        text: The reason.
        affects_all_trials: The result of `affects_all_trials` in that process.

    """

    def __init__(self, text: str, affects_all_trials: bool) -> None:
        super().__init__(text)
        self.affects_all_trials = affects_all_trials


class ReleasedError(UserError):
    """A worker has released its trial after an error that the trial may have caused, and ends."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def is_infrastructure_error(error: Exception) -> bool:
    """True if the trial may not be the cause: a missing store or dataset, a full disk, a run in use.

    This includes every OSError. An OSError that the trial itself causes occurs again, and is counted by
    `Leases.release_after_error`.
    """
    if isinstance(error, InfrastructureError | StorageGoneError | StoreError | BusyError | DataError | OSError):
        return True
    # By the module's name, so that the libraries need not be imported.
    return type(error).__module__.partition(".")[0] in LIBRARIES or _is_disk_full()


def affects_all_trials(error: Exception) -> bool:
    """True if the error affects every trial, so that its repetition says nothing about this trial."""
    if isinstance(error, InfrastructureError):
        return error.affects_all_trials
    if isinstance(error, StorageGoneError | StoreError | BusyError | DataError):
        return True
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _is_disk_full()


def describe_error(error: Exception) -> str:
    """Return the reason for a failure in one line, with the exception's type unless it is a message for users."""
    name, text = type(error).__name__, one_line(error)[:500]
    return text if isinstance(error, UserError) or text == name else f"{name}: {text}"


def _is_disk_full() -> bool:
    home = find_store().home
    return home.exists() and shutil.disk_usage(home).free < FULL_DISK
