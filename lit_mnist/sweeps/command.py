"""The arguments of `lit-mnist sweep` and what each of its verbs does; nothing heavy is imported for a question."""

import argparse
import gc
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_mnist.errors import UsageError
from lit_mnist.terminal import Parser, quiet

USAGE = """\
lit-mnist sweep SPEC.yaml [--trials N] [--workers W] [--storage URL] [--plan]
       lit-mnist sweep status|best|export NAME [--storage URL] [--out FILE]
       lit-mnist sweep list [--storage URL]"""
WHAT = """\
Search for good hyperparameters: a study of N trials, however often it is interrupted and started again.

The same command again runs what is left. Several of them may work on one study, on one machine or, with a
PostgreSQL storage, on many. `status` says how far a study is, `best` writes its best configuration for
`lit-mnist fit --config`, `export` writes every trial to a .csv or .parquet file, `list` names the studies."""


def sweep(arguments: Sequence[str]) -> None:
    """Do what the arguments of `lit-mnist sweep` say.

    Args:
        arguments: Without the command's name.

    Raises:
        UserError: something is wrong with them, or with what they ask for.

    """
    verb = arguments[0] if arguments else "--help"
    if verb in VERBS:
        VERBS[verb](arguments[1:], Parser(f"lit-mnist sweep {verb}", allow_abbrev=False))
        return
    parser = Parser(
        "lit-mnist sweep",
        usage=USAGE,
        description=WHAT,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _sweep(arguments or ["--help"], parser)


def _sweep(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC.yaml", help="what is searched, and how; see sweeps/ for some")
    parser.add_argument("--trials", type=int, help="how many trials the study is to have in all")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share the cores or GPUs (default: 1)"
    )
    _add_storage(parser)
    parser.add_argument(
        "--plan", action="store_true", help="check everything and estimate time and disk; train nothing"
    )
    known = parser.parse_args(arguments)
    for name in ("trials", "workers"):
        if (value := getattr(known, name)) is not None and value < 1:
            raise UsageError(f"--{name} {value} must be at least 1")
    if known.plan:
        from lit_mnist.sweeps.plan import plan
        from lit_mnist.sweeps.search.spec import load_spec

        quiet()
        spec = load_spec(known.spec)
        plan(spec if known.trials is None else spec.with_trials(known.trials), known.workers, known.storage)
        return
    from lit_mnist.sweeps.workers.spawn import prepare

    prepare(known.workers)
    gc.disable()  # imports make a million objects that stay
    from lit_mnist.sweeps.workers.runner import sweep as launch

    quiet()
    launch(known.spec, known.trials, known.workers, known.storage)


def _status(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    known = _parse_named(arguments, parser)
    from lit_mnist.sweeps.results.status import status

    status(known.study, known.storage)


def _best(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="configuration to write (default: NAME_best.yaml)")
    known = _parse_named(arguments, parser)
    from lit_mnist.sweeps.results.export import best

    best(known.study, known.storage, known.out)


def _export(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="file to write, .csv or .parquet (default: NAME.csv)")
    known = _parse_named(arguments, parser)
    from lit_mnist.sweeps.results.export import export

    export(known.study, known.storage, known.out)


def _list(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    _add_storage(parser)
    known = parser.parse_args(arguments)
    from lit_mnist.sweeps.results.status import list_studies

    list_studies(known.storage)


def _trial(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """What a worker starts the processes of a training on several devices with."""
    parser.add_argument("job", type=Path)
    known = parser.parse_args(arguments)
    from lit_mnist.sweeps.workers.distributed import run_job

    quiet()
    run_job(known.job)


def _parse_named(arguments: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("study", metavar="NAME", help="the study")
    _add_storage(parser)
    return parser.parse_args(arguments)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="where studies are kept (default: LIT_MNIST_STORAGE, or mlruns/sweeps.journal);"
        " postgresql+psycopg://HOST/NAME for several machines",
    )


VERBS: dict[str, Callable[[Sequence[str], argparse.ArgumentParser], None]] = {
    "status": _status,
    "best": _best,
    "export": _export,
    "list": _list,
    "trial": _trial,
}
