"""What the command line prints: messages, tables, warnings; and its argument parser."""

import argparse
import contextlib
import logging
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lit_mnist.errors import UsageError
from lit_mnist.redaction import redact


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise `message` as a UsageError that names the command's help."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def seconds(value: float) -> str:
    """A duration as text: 12.3 s, 4 min 05 s, 2 h 03 min."""
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, whole: Sequence[str] = ()
) -> None:
    """Print a table as wide as `width` allows.

    Args:
        columns: Headings.
        rows: Cells, which may hold rich's markup.
        title: A line above it.
        whole: Columns whose cells are never wrapped or truncated, such as ids; the other columns are truncated.

    """
    from rich.console import Console
    from rich.table import Column, Table

    heads = [Column(name, no_wrap=bool(whole), overflow="ellipsis" if whole else "fold") for name in columns]
    if whole:
        # rich (15.0) narrows all columns that may not be wrapped, some of them to a width of 0.
        needed = [max(len(_plain(cells[i])) for cells in (columns, *rows)) for i in range(len(columns))]
        room = width() - 2 * (len(columns) - 1)
        order = sorted(range(len(columns)), key=lambda i: (columns[i] not in whole, needed[i]))
        for left, i in zip(range(len(order), 0, -1), order, strict=True):
            # Narrow columns get the width they need, and wide columns share the rest.
            share = needed[i] if columns[i] in whole else min(needed[i], max(4, room // left))
            heads[i].width, room = share, room - share
    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    # Without highlighting, which would colour numbers and paths in ids and names.
    console = Console(width=width(), highlight=False)
    if title is not None:
        console.print(title)
    console.print(table)


def _plain(markup: str) -> str:
    from rich.text import Text

    return Text.from_markup(markup).plain


def width() -> int:
    """Columns available for a table: the terminal's width, or 200 where the output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def shorten(path: str | Path) -> str:
    """A path to print: relative if it is inside the working directory; anything else, such as a URI, unchanged."""
    file = Path(path)
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else path)


def say(text: str) -> None:
    """Print a line of a long-running command's output, unbuffered; does nothing if the pipe is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(redact(text), flush=True)


def warn(text: str) -> None:
    """Print a warning to standard error, from any thread. Unlike Python's warnings, it is never raised."""
    note(f"warning: {text}")


def note(text: str) -> None:
    """Print a remark to standard error; does nothing if the terminal is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"lit-mnist: {redact(text)}", file=sys.stderr, flush=True)


def quiet() -> None:
    """Silence the log messages and warnings of Lightning and torch that a user can do nothing about.

    Call this after importing Lightning: the import resets the levels of its loggers.
    """
    # "GPU available: False" and the like: what a user needs to know is in the run's own output.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|jsonargparse)\b")
    # Keep the warning that `--trainer.deterministic warn` asks for, although torch issues it.
    warnings.filterwarnings("default", message=".*does not have a deterministic implementation")
    # Print this project's own warnings as one line, without Python's file and line number.
    warnings.showwarning = lambda message, *rest: note(f"warning: {message}")
