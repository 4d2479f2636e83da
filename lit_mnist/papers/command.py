"""The command `reproduce`: arguments and help. Heavy imports are inside functions."""

from lit_mnist.errors import UsageError
from lit_mnist.terminal import Parser, quiet

MOST_SEEDS = 10_000
"""A larger number is a typing error, and its list of seeds could fill the memory."""


def reproduce(arguments: list[str]) -> None:
    """Check the papers' claims, or list them."""
    what = "Check the papers' claims; without a name, list them and the results that are kept."
    parser = Parser("lit-mnist reproduce", description=what, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a paper (zhang) or an experiment (zhang/cnn)")
    parser.add_argument("--all", action="store_true", help="every experiment of every paper")
    parser.add_argument(
        "--seeds",
        help="how many seeds (10 is 0 to 9), or which (5-9,12); they are added to those kept (default: 3)",
    )
    parser.add_argument(
        "--preset",
        choices=("quick", "full"),
        help="full: the papers' own length; quick (default): long trainings are cut to minutes and get no verdict",
    )
    parser.add_argument(
        "--results", metavar="FOLDER", help="where results are kept (default: docs/results, or mlruns/reproduce)"
    )
    parser.add_argument("--replace", action="store_true", help="drop the seeds that are kept")
    parser.add_argument(
        "--table", action="store_true", help="write docs/results.md from the results that are kept"
    )
    # A flag without effect is an error.
    known = parser.parse_args(arguments)
    running = known.names or known.all
    if known.table and (running or known.seeds is not None or known.preset or known.replace):
        raise UsageError("--table writes what is kept: it takes no other arguments than --results")
    if known.all and known.names:
        raise UsageError("--all is every experiment: leave the names out")
    if not running and (known.seeds is not None or known.preset or known.replace):
        raise UsageError(
            "--seeds, --preset and --replace have no effect without an experiment: name one, or take --all"
        )
    seeds = parse_seeds("3" if known.seeds is None else known.seeds)
    # Imported late, since torch, Lightning and MLflow take seconds, and `--help` and argument errors should be
    # fast.
    from lit_mnist.papers.report.experiment import experiments
    from lit_mnist.papers.report.reproduce import reproduce as run
    from lit_mnist.papers.report.results import results_folder
    from lit_mnist.papers.report.table import write_table

    quiet()
    folder = results_folder(known.results)
    if known.table:
        write_table(experiments(), folder)
    else:
        run(known.names, known.all, seeds, known.preset or "quick", folder, known.replace)


def parse_seeds(text: str) -> list[int]:
    """The seeds in the value of `--seeds`: "3" means 0, 1, 2; "5-9,12" means 5 to 9 and 12; "12-12" means 12.

    Raises:
        UsageError: `text` contains no seed, or has another form.

    """
    try:
        # A plain number is a count and not a seed, since `--seeds 10` is the most frequent use.
        if text.isdecimal():
            ranges = [range(int(text))]
        else:
            parts = (part.partition("-") for part in text.split(","))
            ranges = [range(int(first), int(last if dash else first) + 1) for first, dash, last in parts]
            if not all(ranges):
                raise UsageError(f"--seeds {text}: a range begins with its smaller number")
    except ValueError:
        raise UsageError(f"--seeds {text!r} must be a count (10) or ranges (5-9,12)") from None
    # Checked before the ranges become a list; `len` overflows above 2**63.
    if sum(seeds.stop - seeds.start for seeds in ranges) > MOST_SEEDS:
        raise UsageError(f"--seeds {text} names more than {MOST_SEEDS:,} seeds")
    seeds = [seed for each in ranges for seed in each]
    if not seeds:
        raise UsageError(f"--seeds {text} must name at least 1 seed")
    if max(seeds) >= 2**32:
        raise UsageError(f"--seeds {text}: {max(seeds)} is too large: seeds go from 0 to {2**32 - 1}")
    return list(dict.fromkeys(seeds))  # without duplicates, in the order given
