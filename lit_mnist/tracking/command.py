"""The commands `runs`, `compare`, `sync` and `ui`: arguments and help. Heavy imports are inside functions."""

import sys
from pathlib import Path

from lit_mnist.errors import UsageError
from lit_mnist.terminal import Parser


def runs(arguments: list[str]) -> None:
    """List the runs, or mark dead ones as KILLED."""
    parser = Parser("lit-mnist runs", description="List the runs.")
    parser.add_argument("--experiment", help="only the runs of this experiment")
    parser.add_argument("--sort", choices=("start", "metric", "duration", "status", "name"), default="start")
    parser.add_argument("--limit", type=int, default=20, help="at most this many (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--reap", action="store_true", help="mark as KILLED the runs that say RUNNING but whose process is dead"
    )
    # Imports come after parsing, so that `--help` is fast.
    known = parser.parse_args(arguments)
    if known.limit < 1:
        raise UsageError(f"--limit {known.limit} must be at least 1")
    known.limit = min(known.limit, sys.maxsize)
    if known.reap:
        from lit_mnist.tracking.queries.reap import reap

        reap()
        return
    from lit_mnist.tracking.queries.listing import list_runs

    list_runs(known.experiment, known.sort, known.limit, known.json)


def compare(arguments: list[str]) -> None:
    """Show how runs, or the trials of a study, differ."""
    parser = Parser("lit-mnist compare", description="Show how runs differ, grouped over seeds.")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="their ids, the beginnings of their ids, or last (the newest run)"
    )
    parser.add_argument(
        "--study", metavar="NAME", help="instead: the runs of all trials of a sweep, the best first"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML page")
    known = parser.parse_args(arguments)
    if bool(known.runs) == (known.study is not None):
        raise UsageError("name two runs or more by their ids, or a --study; `lit-mnist runs` lists the runs")
    from lit_mnist.tracking.queries.compare import compare

    compare(known.runs, known.study, known.html)


def sync(arguments: list[str]) -> None:
    """Upload the data that runs logged while their tracking store was unreachable."""
    parser = Parser(
        "lit-mnist sync",
        description="Upload the data that runs logged while their tracking store was unreachable.",
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN_ID",
        help="only this run: its id, the beginning of its id, or last (the newest run here)",
    )
    known = parser.parse_args(arguments)
    from lit_mnist.tracking.journal.sync import sync

    sync(known.run)


def ui(arguments: list[str]) -> None:
    """Serve the MLflow UI."""
    parser = Parser("lit-mnist ui", description="Start the MLflow UI on the project's tracking store.")
    parser.add_argument("--port", type=int, default=5000, help="(default: 5000)")
    parser.add_argument(
        "--print-links", action="store_true", help="print the addresses of the newest studies; start nothing"
    )
    known = parser.parse_args(arguments)
    from lit_mnist.tracking.queries.ui import serve

    serve(known.port, known.print_links)
