"""The `lit-mnist` command. Nothing heavy is imported until a subcommand needs it."""

import argparse
import atexit
import contextlib
import difflib
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lit_mnist import __version__
from lit_mnist.errors import UsageError
from lit_mnist.guard import guarded
from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import quiet

FIT_HELP = """\
usage: lit-mnist fit --config NAME_OR_PATH [--GROUP.FIELD VALUE ...]
       lit-mnist fit --resume RUN_ID|last [--GROUP.FIELD VALUE ...]

Train a model as one MLflow run, or go on with a run that was interrupted.

  --config zhang/cnn            a packaged configuration, or a path
  --model.lr 0.01               any field of the model, the data, the trainer (Lightning's) or tracking
  --data KMNISTDataModule       another dataset: MNIST-, FashionMNIST-, KMNIST- or MiniMNISTDataModule
  --trainer.max_epochs 5
  --seed_everything 1
  --threads 1                   CPU threads; sums over another number of them are rounded otherwise
  --checkpoint.every_n_steps 500  (and .every_n_minutes 5) how often training is saved to go on from
  --resume last                 go on with the newest unfinished run, or that of an id; other flags beat its own
  --offline                     ask no tracking store; `lit-mnist sync` sends the run later
  --print_config                the whole configuration as YAML, with nothing trained

  --model.help CNN              the fields of a model
  --data.help MNISTDataModule   the fields of a dataset
  --help.fields                 those of trainer and tracking

packaged configurations:
"""


class Parser(argparse.ArgumentParser):
    """argparse with this project's manner of saying what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def run() -> int:
    """`lit-mnist` as a process of its own; returns its exit code."""
    _open_closed_streams()
    code = 1
    # What is registered first is called last. To take apart all that was imported would take seconds.
    atexit.register(lambda: _leave(code))
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = given[:1] == ["--debug"]
    return guarded(lambda: _dispatch(given[debug:]), debug)


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
            setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115 - lives with the process


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever reads may be gone
            stream.flush()
    os._exit(code)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        print(f"lit-mnist {__version__}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}; {hint}")
    COMMANDS[name][1](rest)


def _fit(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(FIT_HELP + "\n".join(f"  {name}" for name in _config_names()))
        return
    # The imports make a million objects that stay; looking for garbage among them takes a tenth of the start.
    gc.disable()
    with SignalWatch() as watch:
        from lit_mnist.training.fit import fit

        quiet()
        fit(["--help" if argument == "--help.fields" else argument for argument in arguments], watch=watch)


def _evaluate(verb: str) -> Callable[[list[str]], None]:
    def command(arguments: list[str]) -> None:
        what = {"validate": "Measure a run's checkpoint on the validation images.",
                "test": "Measure a run's checkpoint on the test images, and log it to the run."}  # fmt: skip
        parser = _run_parser(verb, what[verb])
        known, overrides = parser.parse_known_args(arguments)
        from lit_mnist.training.evaluate import evaluate

        quiet()
        evaluate(verb, known.run, known.checkpoint, overrides)

    return command


def _predict(arguments: list[str]) -> None:
    parser = _run_parser("predict", "Label images, or reconstruct them, with a run's checkpoint.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="of any size and mode")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for reconstructions (default: here)")
    known = parser.parse_args(arguments)
    from lit_mnist.training.evaluate import predict

    quiet()
    predict(known.run, known.checkpoint, known.images, known.out, [])


def _data(arguments: list[str]) -> None:
    from lit_mnist.data.datasets import DOWNLOADS, PAPER_DATASETS

    parser = Parser("lit-mnist data", description="Where the datasets are, and how they get there.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="download what is missing, once, with checksums")
    fetch.add_argument(
        "--dataset", choices=(*DOWNLOADS, "all"), help=f"which to get (default: {' and '.join(PAPER_DATASETS)})"
    )
    fetch.add_argument("--mirror", help="base address to download from, instead of the public ones")
    for verb, what in (("verify", "check every file's checksum"), ("where", "which folder each comes from")):
        verbs.add_parser(verb, help=what)
    for sub in verbs.choices.values():
        sub.add_argument("--root", help="folder of the datasets (default: LIT_MNIST_DATA, or ./data)")
    known = parser.parse_args(arguments)
    from lit_mnist.data import download as module
    from lit_mnist.data.locate import default_root

    if known.verb == "fetch":
        root = Path(known.root) if known.root else default_root()
        chosen = {None: PAPER_DATASETS, "all": tuple(DOWNLOADS)}.get(known.dataset, (known.dataset,))
        module.fetch(chosen, root, known.mirror)
    elif known.verb == "verify":
        module.verify(DOWNLOADS, known.root)
    else:
        module.where(known.root)


def _runs(arguments: list[str]) -> None:
    parser = Parser("lit-mnist runs", description="List the runs.")
    parser.add_argument("--experiment", help="only those of this experiment")
    parser.add_argument("--sort", choices=("start", "metric", "duration", "status", "name"), default="start")
    parser.add_argument("--limit", type=int, default=20, help="how many at most (default: 20)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--reap", action="store_true", help="set runs to KILLED that say RUNNING and are dead")
    known = parser.parse_args(arguments)
    if known.reap:
        from lit_mnist.tracking.queries.reap import reap

        reap()
        return
    from lit_mnist.tracking.queries.listing import list_runs

    list_runs(known.experiment, known.sort, known.limit, known.json)


def _compare(arguments: list[str]) -> None:
    parser = Parser("lit-mnist compare", description="Show how runs differ, with seeds taken together.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="their ids, or the beginnings of them")
    parser.add_argument("--study", metavar="NAME", help="instead: all runs of a sweep's trials, the best first")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    known = parser.parse_args(arguments)
    if bool(known.runs) == (known.study is not None):
        raise UsageError("name two runs or more by their ids, or a --study; `lit-mnist runs` lists the runs")
    from lit_mnist.tracking.queries.compare import compare

    compare(known.runs, known.study, known.html)


def _sync(arguments: list[str]) -> None:
    parser = Parser("lit-mnist sync", description="Send what runs have kept while their store was away.")
    parser.add_argument("run", nargs="?", metavar="RUN_ID", help="only this run; the beginning of its id does")
    known = parser.parse_args(arguments)
    from lit_mnist.tracking.journal.sync import sync

    sync(known.run)


def _reproduce(arguments: list[str]) -> None:
    what = "Check the papers' claims; without a name, list them with what is known here."
    parser = Parser("lit-mnist reproduce", description=what, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a paper (zhang) or an experiment (zhang/cnn)")
    parser.add_argument("--all", action="store_true", help="every experiment of every paper")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each stage (default: 3)")
    parser.add_argument(
        "--preset", choices=("quick", "full"), default="quick", help="the papers' own length, or cut to minutes"
    )
    parser.add_argument("--table", action="store_true", help="write the README's table from the stored results")
    known = parser.parse_args(arguments)
    running = known.names or known.all
    if known.table and (running or known.seeds != 3 or known.preset != "quick"):
        raise UsageError("--table writes what is stored: it takes no other arguments")
    if known.all and known.names:
        raise UsageError("--all is every experiment: leave the names out")
    if not running and (known.seeds != 3 or known.preset != "quick"):
        raise UsageError("--seeds and --preset have no effect without an experiment: name one, or take --all")
    if known.seeds < 1:
        raise UsageError(f"--seeds {known.seeds} must be at least 1")
    from lit_mnist.papers.report import reproduce as module

    quiet()
    if known.table:
        module.table()
    else:
        module.reproduce(known.names, known.all, known.seeds, known.preset)


def _sweep(arguments: list[str]) -> None:
    from lit_mnist.sweeps.command import sweep

    sweep(arguments, Parser)


def _ui(arguments: list[str]) -> None:
    parser = Parser("lit-mnist ui", description="Start the MLflow UI on the project's store.")
    parser.add_argument("--port", type=int, default=5000)
    known = parser.parse_args(arguments)
    from lit_mnist.tracking.queries.ui import serve

    serve(known.port)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "fit": ("train a model", _fit),
    "validate": ("measure a run's checkpoint on the validation images", _evaluate("validate")),
    "test": ("measure a run's checkpoint on the test images", _evaluate("test")),
    "predict": ("label or reconstruct images", _predict),
    "reproduce": ("check what the papers claim", _reproduce),
    "sweep": ("search for good hyperparameters", _sweep),
    "data": ("fetch, verify and find the datasets", _data),
    "runs": ("list the runs", _runs),
    "compare": ("show how runs differ", _compare),
    "sync": ("send what runs have kept while their store was away", _sync),
    "ui": ("look at the runs in MLflow", _ui),
}


def _overview() -> str:
    lines = [f"  {name:<11}{what}" for name, (what, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lit-mnist [--debug] COMMAND ...",
            "",
            *lines,
            "",
            "`lit-mnist COMMAND --help` says more of each.",
            "--debug shows the traceback of an error.",
        ]
    )


def _run_parser(verb: str, description: str) -> Parser:
    parser = Parser(f"lit-mnist {verb}", description=description, allow_abbrev=False)
    parser.add_argument("--run", required=True, metavar="RUN_ID", help="the run, or the beginning of its id")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or a file")
    return parser


def _config_names() -> list[str]:
    root = Path(__file__).parent / "configs"
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


if __name__ == "__main__":
    sys.exit(run())
