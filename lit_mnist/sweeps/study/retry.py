"""A database that goes away for a while is waited for."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import InterfaceError, OperationalError

from lit_mnist.errors import UserError
from lit_mnist.terminal import note
from lit_mnist.tracking.store import reason

PATIENCE = 60.0
"""Seconds for which a database may be away."""
PAUSE = 0.5
Value = TypeVar("Value")


class StorageGoneError(UserError):
    """The studies' storage does not answer any more."""


class RetryingStorage:
    """An Optuna storage whose every call is tried again while its database is away, up to a minute.

    Args:
        within: Optuna's storage.
        name: What people call it.

    """

    def __init__(self, within: Any, name: str) -> None:
        self.within, self.name = within, name
        self.outages = 0
        """How often the database was found away."""
        self._said = -PATIENCE

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.within, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: wait_out(lambda: found(*args, **kwargs), self)

    def say_away(self) -> None:
        """Say that it is away, once an outage."""
        if time.monotonic() - self._said >= PATIENCE:
            note(f"the studies' storage {self.name} is away: waiting for it, up to {PATIENCE:.0f} s")
        self._said = time.monotonic()


def wait_out(work: Callable[[], Value], storage: RetryingStorage) -> Value:
    """Do `work`, as often as it takes until the database is back.

    Raises:
        StorageGoneError: it was away for a minute.

    """
    deadline: float | None = None
    while True:
        try:
            return work()
        except Exception as error:
            if not is_outage(error):
                raise
            storage.outages += 1
            if deadline is None:
                deadline = time.monotonic() + PATIENCE
                storage.say_away()
            elif time.monotonic() > deadline:
                why = reason(error.__cause__ or error)
                raise StorageGoneError(f"the studies' storage {storage.name} is gone: {why}") from None
            time.sleep(PAUSE)


def is_outage(error: BaseException) -> bool:
    """Whether a database could not be reached, rather than having refused something."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, OperationalError | InterfaceError)
