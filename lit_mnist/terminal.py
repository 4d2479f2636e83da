"""How figures and tables are printed."""

import contextlib
import logging
import shutil
import sys
import warnings
from collections.abc import Sequence

from lit_mnist.redaction import redact


def seconds(value: float) -> str:
    """A duration for people: 12.3 s, 4 min 05 s, 2 h 03 min."""
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table, at the terminal's width or, elsewhere, as wide as it needs."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(width=width(), highlight=False)
    if title is not None:
        console.print(title)
    console.print(table)


def width() -> int:
    """Columns that a table may take."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def say(text: str) -> None:
    """Print a line of a long work's output at once; that goes on when nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        print(redact(text), flush=True)


def warn(text: str) -> None:
    """Print a warning in the manner of the command line; from any thread, where Python's own would be an error."""
    note(f"warning: {text}")


def note(text: str) -> None:
    """Print a remark that is no warning, beside the output."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that has gone is no reason to stop
        print(f"lit-mnist: {redact(text)}", file=sys.stderr, flush=True)


def quiet() -> None:
    """Keep to what a user can act on: Lightning's and torch's remarks on this machine are not that.

    To be called when Lightning is imported, since that sets the levels anew.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|jsonargparse)\b")
    # What `--trainer.deterministic warn` is for; it comes from within torch.
    warnings.filterwarnings("default", message=".*does not have a deterministic implementation")
    warnings.showwarning = lambda message, *rest: note(f"warning: {message}")
