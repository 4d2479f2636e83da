"""The command `reproduce`: arguments and help. Imports nothing heavy at its top."""

from lit_mnist.errors import UsageError
from lit_mnist.terminal import Parser, quiet


def reproduce(arguments: list[str]) -> None:
    """Check the papers' claims, or list them."""
    what = "Check the papers' claims; without a name, list them and the results stored here."
    parser = Parser("lit-mnist reproduce", description=what, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a paper (zhang) or an experiment (zhang/cnn)")
    parser.add_argument("--all", action="store_true", help="every experiment of every paper")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each stage (default: 3)")
    parser.add_argument(
        "--preset", choices=("quick", "full"), default="quick", help="the papers' own length, or cut to minutes"
    )
    parser.add_argument("--table", action="store_true", help="write docs/results.md from the stored results")
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
    from lit_mnist.papers.report.experiment import experiments
    from lit_mnist.papers.report.reproduce import reproduce as run
    from lit_mnist.papers.report.table import write_table

    quiet()
    if known.table:
        write_table(experiments())
    else:
        run(known.names, known.all, known.seeds, known.preset)
