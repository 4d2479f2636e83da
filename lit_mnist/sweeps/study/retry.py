"""A storage of studies that tolerates short outages of its database."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.engine import Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from lit_mnist.errors import UserError
from lit_mnist.terminal import note
from lit_mnist.tracking.store import reason

OUTAGE_TIMEOUT = 60.0
"""Seconds for which a database may be unreachable before an error is raised."""
RETRY_INTERVAL = 0.5
"""Seconds between two attempts to reach it."""
Result = TypeVar("Result")


class StorageGoneError(UserError):
    """The studies' database has been unreachable for OUTAGE_TIMEOUT."""


class RetryingStorage:
    """An Optuna storage whose calls are repeated while its database is unreachable, for up to OUTAGE_TIMEOUT.

    A repeated call may take effect twice, if the server becomes unreachable after a commit and before its answer.
    `Leases` allows for this; all other writes store a value and may be repeated.

    Args:
        wrapped: The storage, as Optuna opened it.
        name: Its URL or path without a password, for messages.
        engine: Connections to a database server that several machines may share; None for a file.
        file: The storage's file on this machine; None for a server.

    """

    def __init__(self, wrapped: BaseStorage, name: str, engine: Engine | None, file: Path | None) -> None:
        self.wrapped, self.name, self.engine, self.file = wrapped, name, engine, file
        self.option = ""
        """The option with which commands find it, such as ` --storage a.journal`; empty for the default."""
        self.outages = 0
        """How many calls have failed because the database was unreachable."""
        # In the past, so that the first outage is reported.
        self._noted = -OUTAGE_TIMEOUT

    def __getattr__(self, name: str) -> Any:
        # Optuna's Study and Trial call this object as they would call `wrapped`. Attributes are wrapped
        # dynamically, since Optuna's storages have dozens of methods, and more with each version.
        attribute = getattr(self.wrapped, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: self.retry(lambda: attribute(*args, **kwargs))

    def retry(self, call: Callable[[], Result]) -> Result:
        """Return the result of `call`, repeated while the database is unreachable.

        Raises:
            StorageGoneError: it was unreachable for OUTAGE_TIMEOUT.

        """
        # Set at the first failure: the time limit is for the outage, not for one attempt.
        deadline: float | None = None
        while True:
            try:
                return call()
            except Exception as error:
                if not is_connection_error(error):
                    raise
                self.outages += 1
                now = time.monotonic()
                if deadline is None:
                    deadline = now + OUTAGE_TIMEOUT
                    if now - self._noted >= OUTAGE_TIMEOUT:  # one message per outage, not one per call
                        note(
                            f"the studies' storage {self.name} is unreachable:"
                            f" trying again for up to {OUTAGE_TIMEOUT:.0f} s"
                        )
                    self._noted = now
                elif now > deadline:
                    why = reason(error.__cause__ or error)
                    raise StorageGoneError(f"the studies' storage {self.name} is gone: {why}") from None
                time.sleep(RETRY_INTERVAL)


def is_connection_error(error: BaseException) -> bool:
    """True if the database could not be reached; False if it was reached and reported an error."""
    # Optuna wraps SQLAlchemy's errors in its own, with the original as the cause.
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, OperationalError | InterfaceError)
