"""Tells errors of a trial, which has then FAILED, from those of the infrastructure: then it is tried again."""

import errno
import shutil

from lit_mnist.errors import DataError, UserError
from lit_mnist.sweeps.study.retry import StorageGoneError
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.store import StoreError, find_store, one_line

ROOM = 32 * 1024 * 1024
"""Bytes below which a disk is full."""


class InfrastructureError(UserError):
    """An error in another process that trained for a trial, which `is_infrastructure_error` was true for there.

    Args:
        text: The reason.
        outage: What `is_outage` was there.

    """

    def __init__(self, text: str, outage: bool) -> None:
        super().__init__(text)
        self.outage = outage


class ReleasedError(UserError):
    """A trial was released, to be tried again, after an error that may be its own."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


def is_outage(error: Exception) -> bool:
    """True if the error would meet every trial alike, so that its coming again says nothing about the trial."""
    if isinstance(error, InfrastructureError):
        return error.outage
    if isinstance(error, StorageGoneError | StoreError | BusyError | DataError):
        return True
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _is_disk_full()


def is_infrastructure_error(error: Exception) -> bool:
    """True if the error may be none of the trial's: store or data away, a full disk, another process at work.

    Any OSError is among them. One that is the trial's own after all comes again: see `Leases.release`.
    """
    if isinstance(error, InfrastructureError | StorageGoneError | StoreError | BusyError | DataError | OSError):
        return True
    if type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy", "requests", "optuna"):
        return True
    return _is_disk_full()


def _is_disk_full() -> bool:
    home = find_store().home
    return home.exists() and shutil.disk_usage(home).free < ROOM


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line."""
    text = one_line(error)[:500]
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}"
