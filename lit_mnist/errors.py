"""Exceptions that the command line prints as one line, without a traceback."""

import difflib
from collections.abc import Iterable
from typing import Any

from lit_mnist.redaction import redact

DEBUG_HINT = "(`lit-mnist --debug ...` shows the traceback)"
"""End of each error line that reports an exception of another library."""


class UserError(Exception):
    """Bad input, or something missing on this machine: the message says what is wrong, the value, and what to do.

    The command line prints the message after `lit-mnist: error:` and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(UserError):
    """An invalid flag, configuration field or argument."""

    exit_code = 2


class LibraryError(UsageError):
    """An exception that Lightning, torch, numpy or another library raised about an invalid value.

    Args:
        error: The library's exception.
        subject: What was being done, or the group of flags that the value belongs to.

    """

    def __init__(self, error: BaseException, subject: str) -> None:
        super().__init__(f"{subject}: {one_line(error)} {DEBUG_HINT}")

    def __reduce__(self) -> tuple[Any, ...]:
        # The check of a sweep's points pickles its errors to send them between processes. By default, unpickling
        # would call the class with `args`, which holds the finished message.
        return LibraryError.__new__, (LibraryError, *self.args)


class DataError(UserError):
    """Files of a dataset are missing or damaged; the model trained on them is not at fault."""


class Interrupted(Exception):  # noqa: N818 - not an error: the process was asked to end
    """A signal asked the process to end; `signal` is its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


def one_line(error: BaseException) -> str:
    """The exception's message without line breaks and passwords; its type if it has no message."""
    return " ".join(redact(str(error)).split()) or type(error).__name__


def nearest(name: str, names: Iterable[str], listed: bool = False) -> str:
    """A hint to append to an error message: the one of `names` that is most similar to `name`.

    Args:
        name: The name that was given.
        names: The valid names.
        listed: List all of `names` if none is similar.

    Returns:
        "; did you mean NAME?", "; there are NAME, NAME", or the empty string.

    """
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if listed else ""
