"""Errors that a user can mend: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a missing piece of the surroundings: what was wrong, the value, what to do.

    The command line prints the message after `lit-mnist: error:` and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(UserError):
    """A flag, a config field or an argument that is wrong in itself."""

    exit_code = 2


class DataError(UserError):
    """Files of a dataset that are missing or damaged: no fault of what is to be trained on them."""


class Interrupted(Exception):  # noqa: N818 - not an error: somebody wants the process to end
    """A signal asked the process to end; `signal` is its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


def nearest(name: str, names: Iterable[str], listed: bool = False) -> str:
    """A hint at which of `names` was meant; where none is near and they are `listed`, at what there is."""
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if listed else ""
