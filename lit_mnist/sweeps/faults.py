"""Whose fault an error is: a trial's, which has FAILED, or its surroundings', for which it waits."""

import shutil

from lit_mnist.errors import DataError, UserError
from lit_mnist.sweeps.patience import StorageGoneError
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.store import StoreError, find_store, one_line

ROOM = 32 * 1024 * 1024
"""Bytes below which a disk is full."""


class OutsideError(UserError):
    """What a process that trained for a trial has met with, and was no fault of the trial."""


def is_from_outside(error: Exception) -> bool:
    """Whether the error is none of the trial's: store or data away, a full disk, somebody else at work."""
    if isinstance(error, OutsideError | StorageGoneError | StoreError | BusyError | DataError | OSError):
        return True
    if type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy", "requests", "optuna"):
        return True
    home = find_store().home
    return home.exists() and shutil.disk_usage(home).free < ROOM


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line."""
    text = one_line(error)[:500]
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}"
