"""Tells errors of a trial, which then has FAILED, from those of the infrastructure: then it is tried again."""

import errno
import shutil

from lit_mnist.errors import DataError, UserError, one_line
from lit_mnist.sweeps.study.retry import StorageGoneError
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.store import StoreError, find_store

FULL_DISK = 32 * 1024 * 1024
"""Free bytes below which a disk counts as full: torch and SQLite report a failed write in many different ways."""
LIBRARIES = ("mlflow", "sqlalchemy", "requests", "optuna")
"""Libraries whose exceptions are about a store or a server, and never about a training."""


class InfrastructureError(UserError):
    """An infrastructure error that occurred in another process, which trained for a trial of this one.

    Args:
        text: The reason.
        affects_all_trials: As `affects_all_trials` returned there.

    """

    def __init__(self, text: str, affects_all_trials: bool) -> None:
        super().__init__(text)
        self.affects_all_trials = affects_all_trials


class ReleasedError(UserError):
    """A worker has released its trial after an error of which the trial may be the cause, and ends."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def is_infrastructure_error(error: Exception) -> bool:
    """True if the error may not be the trial's own: store or data missing, full disk, another process at work.

    Every OSError is one of these. An OSError that the trial itself causes comes again each time, which
    `Leases.release_after_error` counts.
    """
    if isinstance(error, InfrastructureError | StorageGoneError | StoreError | BusyError | DataError | OSError):
        return True
    # By the module's name, so that no library is imported to look at an error.
    return type(error).__module__.partition(".")[0] in LIBRARIES or _is_disk_full()


def affects_all_trials(error: Exception) -> bool:
    """True if the error would stop every trial alike, so that its repetition says nothing about this one."""
    if isinstance(error, InfrastructureError):
        return error.affects_all_trials
    if isinstance(error, StorageGoneError | StoreError | BusyError | DataError):
        return True
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _is_disk_full()


def describe_error(error: Exception) -> str:
    """Return in one line why a trial failed; with the type, unless the message is meant for users."""
    name, text = type(error).__name__, one_line(error)[:500]
    return text if isinstance(error, UserError) or text == name else f"{name}: {text}"


def _is_disk_full() -> bool:
    home = find_store().home
    return home.exists() and shutil.disk_usage(home).free < FULL_DISK
