"""Where a process's work ends: what a user can mend gets one line and an exit code."""

import gc
import signal
import sys
import traceback
from collections.abc import Callable

from lit_mnist.errors import Interrupted, UserError
from lit_mnist.redaction import redact
from lit_mnist.signals import exit_code

ERROR = "lit-mnist: error: "
"""How the line begins."""


def guarded(work: Callable[[], None], debug: bool = False) -> int:
    """Run `work` and return the exit code.

    Errors that a user can fix are printed as one line, with `debug` after their traceback.
    """

    def attempt() -> None:
        try:
            work()
        except Exception as error:
            if debug:
                error.__suppress_context__ = False  # show the library's error behind a `raise ... from None`
                print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")
            raise

    try:
        attempt()
    except UserError as error:
        print(f"{ERROR}{redact(str(error))}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interruption:
        print(f"lit-mnist: stopped by {signal.Signals(interruption.signal).name}", file=sys.stderr)
        return exit_code(interruption.signal)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a list has had enough
        sys.stderr.close()
        return 141
    except OSError as error:
        print(f"{ERROR}{redact(str(error))}", file=sys.stderr)
        return 1
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy", "requests"):
            raise
        from lit_mnist.tracking.store import reason

        print(f"{ERROR}the tracking store: {reason(error)}", file=sys.stderr)
        return 1
    finally:
        gc.enable()
    return 0
