"""Errors that a user can mend: the command line prints them as one line, without a traceback."""


class UserError(Exception):
    """Bad input or a missing piece of the surroundings: what was wrong, the value, what to do.

    The command line prints the message after `lit-mnist: error:` and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(UserError):
    """A flag, a config field or an argument that is wrong in itself."""

    exit_code = 2


class Interrupted(Exception):  # noqa: N818 - not an error: somebody wants the process to end
    """A signal asked the process to end; `signal` is its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal
