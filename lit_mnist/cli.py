"""The `lit-mnist` command: finds the command that the first argument names, and calls it.

Each command's arguments and help live in the `command.py` of its package, which is imported only when one of
its commands is called: torch, Lightning and MLflow take seconds to import.
"""

import atexit
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from lit_mnist import __version__
from lit_mnist.errors import UsageError, nearest
from lit_mnist.guard import guarded
from lit_mnist.signals import end_at_once

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("train a model", "lit_mnist.training.command:fit"),
    "validate": ("measure a run's checkpoint on the validation images", "lit_mnist.training.command:validate"),
    "test": ("measure a run's checkpoint on the test images", "lit_mnist.training.command:test"),
    "predict": ("label or reconstruct images", "lit_mnist.training.command:predict"),
    "export": ("write a run's network as a file, or as an MLflow model", "lit_mnist.training.command:export"),
    "reproduce": ("check what the papers claim", "lit_mnist.papers.command:reproduce"),
    "sweep": ("search for good hyperparameters", "lit_mnist.sweeps.command:sweep"),
    "data": ("fetch, verify and find the datasets", "lit_mnist.data.command:data"),
    "submit": ("run a command as a SLURM job", "lit_mnist.cluster.submit:submit"),
    "jobs": ("list the submitted jobs", "lit_mnist.cluster.jobs:jobs"),
    "runs": ("list the runs", "lit_mnist.tracking.command:runs"),
    "compare": ("show how runs differ", "lit_mnist.tracking.command:compare"),
    "sync": ("send what runs logged while the tracking store was unreachable", "lit_mnist.tracking.command:sync"),
    "ui": ("look at the runs in MLflow", "lit_mnist.tracking.command:ui"),
}
"""Name to summary and `module:function`; the function takes the arguments after the command's name."""


def run() -> int:
    """Entry point of the `lit-mnist` process; returns its exit code."""
    # First of all: whatever opens a file next must not get the number of a standard stream.
    _open_closed_streams()
    # The exit code after an unexpected exception; Python prints its traceback before it calls `leave`.
    code = 1

    def leave() -> None:
        """End the process without Python's finalisation, which would spend seconds on the imported modules."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the reader may be gone
                stream.flush()
        os._exit(code)

    # Before the imports, which take seconds: a cluster's warning signal may arrive meanwhile.
    end_at_once()
    atexit.register(leave)  # functions registered later, by libraries, are called before it
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: this process's) name; returns the exit code."""
    # `--debug` stands before the command, whose own arguments may be of any form.
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = given[:1] == ["--debug"]
    return guarded(lambda: _call_command(given[debug:]), debug)


def _call_command(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: lit-mnist [--debug] COMMAND ...\n")
        for name, (summary, _) in COMMANDS.items():
            print(f"  {name:<11}{summary}")
        print("\n`lit-mnist COMMAND --help` lists the arguments of each.")
        print("`lit-mnist --debug COMMAND ...` shows the traceback behind an error.")
        return
    if arguments[0] == "--version":
        print(f"lit-mnist {__version__}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}{nearest(name, COMMANDS, listed=True)}")
    # Only now is the package imported.
    module, _, function = COMMANDS[name][1].partition(":")
    getattr(importlib.import_module(module), function)(rest)


def _open_closed_streams() -> None:
    """Point closed standard streams (`>&-`) at /dev/null.

    Otherwise Python sets them to None, and the next file opened (the database) gets descriptor 1 or 2.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115 - lives as long as the process


if __name__ == "__main__":
    sys.exit(run())
