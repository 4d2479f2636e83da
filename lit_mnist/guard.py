"""Runs a command and turns its exceptions into one line and an exit code."""

import gc
import signal
import sys
import traceback
from collections.abc import Callable

from lit_mnist.errors import DEBUG_HINT, Interrupted, UserError
from lit_mnist.redaction import redact
from lit_mnist.signals import exit_code

ERROR = "lit-mnist: error: "
"""Start of every error line."""


def guarded(work: Callable[[], None], debug: bool = False) -> int:
    """Call `work` and return the exit code of the process.

    Errors that a user can fix are printed as one line. An unexpected exception is raised with its traceback.

    Args:
        work: The command.
        debug: Print the traceback of every error before its line.

    """
    try:
        work()
        return 0
    except Interrupted as interruption:
        print(f"lit-mnist: stopped by {signal.Signals(interruption.signal).name}", file=sys.stderr)
        return exit_code(interruption.signal)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a list, such as `head`, has ended
        # Python would complain about the broken pipe once more when it flushes the streams at exit.
        sys.stderr.close()
        return 141
    except Exception as error:
        # Messages of libraries may quote a URL with its password; every line is redacted here.
        line = _line(error)
        if debug and line is not None:
            error.__suppress_context__ = False  # show the exception behind a `raise ... from None`
            print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        if line is None:
            raise
        print(f"{ERROR}{redact(line)}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 1
    finally:
        gc.enable()  # `fit` and `sweep` switch it off while they import


def _line(error: Exception) -> str | None:
    """The message for a user; None for an unexpected exception."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error} {DEBUG_HINT}"
    # Exceptions of the tracking store's libraries, recognised by name: importing the libraries takes seconds.
    if type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy", "requests"):
        from lit_mnist.tracking.store import reason

        return f"the tracking store: {reason(error)} {DEBUG_HINT}"
    return None
