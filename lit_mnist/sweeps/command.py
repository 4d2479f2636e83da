"""The arguments of `lit-mnist sweep` and its verbs. Heavy imports are inside functions."""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from lit_mnist.errors import UsageError
from lit_mnist.slurm import allocation, leave_tasks
from lit_mnist.sweeps.resources import take_task_share
from lit_mnist.terminal import Parser, quiet

USAGE = """\
lit-mnist sweep SPEC.yaml|NAME [--trials N] [--workers W] [--storage URL] [--plan]
       lit-mnist sweep confirm NAME [--top 3] [--seeds 5] [--workers W] [--storage URL]
       lit-mnist sweep status|best|export NAME [--storage URL] [--out FILE]
       lit-mnist sweep list [--storage URL]"""
DESCRIPTION = """\
Search for good hyperparameters. A study has N trials, however often it is interrupted.

The same command again runs the trials that are left. It may be started several times for one study, on one machine
or, with a PostgreSQL storage, on many. NAME is that of a stored study. `status` shows how far a study is, `best`
writes its best configuration for `lit-mnist fit --config`, `confirm` trains the best points with further seeds and
says which are tied, `export` writes a table of all trials, `list` lists the studies."""
RESULTS = ("status", "best", "export", "list")


def sweep(arguments: Sequence[str]) -> None:
    """Run a sweep, or the verb that the first argument names.

    Args:
        arguments: The command line after `lit-mnist sweep`.

    Raises:
        UserError: an argument is wrong, or the file or study that it names.

    """
    verb = arguments[0] if arguments else "--help"
    if verb == "confirm":
        _confirm(arguments[1:])
    elif verb in RESULTS:
        _show_results(verb, arguments[1:])
    elif verb == "trial":  # started by a worker, see `workers/distributed.py`
        # An internal command for the ranks of a trial on several devices, which the help does not list.
        parser = Parser("lit-mnist sweep trial", allow_abbrev=False)
        parser.add_argument("job", type=Path)
        job = parser.parse_args(arguments[1:]).job
        from lit_mnist.sweeps.workers.distributed import run_job

        quiet()
        run_job(job)
    else:
        _run(arguments or ["--help"])


def _run(arguments: Sequence[str]) -> None:
    """`lit-mnist sweep SPEC.yaml`: plan a sweep, or run it."""
    parser = Parser(
        "lit-mnist sweep",
        usage=USAGE,
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "spec", metavar="SPEC.yaml|NAME", help="the specification (sweeps/ has some to copy), or a stored study"
    )
    parser.add_argument("--trials", type=int, help="size of the study, instead of what the specification says")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share the cores or GPUs (default: 1)"
    )
    parser.add_argument(
        "--keep-checkpoints",
        choices=("all", "best", "none"),
        help="checkpoints that a trial keeps once it has ended (default: best; a pruned trial keeps none)",
    )
    _add_storage(parser)
    parser.add_argument(
        "--plan", action="store_true", help="check everything and estimate time and disk; train nothing"
    )
    known = parser.parse_args(arguments)
    _check_counts(known, trials=(1, None), workers=(1, 1000))
    # Each branch imports only what it needs, since torch and MLflow take seconds.
    if known.plan:
        from lit_mnist.sweeps.plan import plan
        from lit_mnist.sweeps.study.study import find_spec

        quiet()
        spec = find_spec(known.spec, known.storage)
        plan(spec, known.workers, known.storage, known.trials)
        return
    _prepare_workers(known.workers)
    from lit_mnist.sweeps.workers.runner import sweep as run_sweep

    quiet()
    run_sweep(known.spec, known.trials, known.workers, known.storage, known.keep_checkpoints)


def _confirm(arguments: Sequence[str]) -> None:
    """`lit-mnist sweep confirm NAME`."""
    parser = Parser("lit-mnist sweep confirm", allow_abbrev=False)
    parser.add_argument("study", metavar="NAME", help="name of the study")
    parser.add_argument("--top", type=int, default=3, help="how many of the best points (default: 3)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, new ones (default: 5)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cores (default: 1)")
    _add_storage(parser)
    known = parser.parse_args(arguments)
    _check_counts(known, top=(1, None), seeds=(2, 1000), workers=(1, 1000))
    _prepare_workers(known.workers)
    from lit_mnist.sweeps.confirm import confirm

    quiet()
    confirm(known.study, known.top, known.seeds, known.workers, known.storage)


def _check_counts(known: argparse.Namespace, **limits: tuple[int, int | None]) -> None:
    """Refuse counts that are too small, and typing errors so large that they would fill the memory."""
    for name, (least, most) in limits.items():
        if (value := getattr(known, name)) is None:
            continue
        if value < least:
            raise UsageError(f"--{name} {value} must be at least {least}")
        if most is not None and value > most:
            raise UsageError(f"--{name} {value} must be at most {most:,}")


def _prepare_workers(workers: int) -> None:
    """Start the workers' imports, in parallel to this process's own."""
    if allocation() is not None:  # before the fork server starts, since workers inherit its environment
        take_task_share()
        leave_tasks()
    from lit_mnist.sweeps.workers.spawn import prepare

    prepare(workers)
    gc.disable()  # garbage collection during the imports takes a tenth of the start-up time


def _show_results(verb: str, arguments: Sequence[str]) -> None:
    """`lit-mnist sweep status|best|export NAME` and `list`."""
    parser = Parser(f"lit-mnist sweep {verb}", allow_abbrev=False)
    if verb != "list":
        parser.add_argument("study", metavar="NAME", help="name of the study")
    if verb == "best":
        parser.add_argument("--out", type=Path, help="configuration to write (default: NAME_best.yaml)")
    if verb == "export":
        parser.add_argument("--out", type=Path, help="file to write, .csv or .parquet (default: NAME.csv)")
    _add_storage(parser)
    known = parser.parse_args(arguments)
    # These verbs need no workers; `status` and `list` need neither torch nor MLflow.
    if verb in ("best", "export"):
        from lit_mnist.sweeps.results import export

        write = export.best if verb == "best" else export.export
        write(known.study, known.storage, known.out)
        return
    from lit_mnist.sweeps.results import status

    if verb == "list":
        status.list_studies(known.storage)
    else:
        status.status(known.study, known.storage)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="where studies are kept (default: LIT_MNIST_STORAGE, or mlruns/sweeps.journal);"
        " postgresql+psycopg://HOST/NAME for several machines",
    )
