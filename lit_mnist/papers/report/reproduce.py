"""`lit-mnist reproduce`: each claim of the papers, checked on this machine."""

from collections.abc import Sequence

from lit_mnist.papers.catalog import experiments, select
from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.papers.report.results import Result, read_result
from lit_mnist.papers.report.runner import run_experiment
from lit_mnist.papers.report.table import write_table
from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import print_table, seconds
from lit_mnist.training.stages import Preset


def reproduce(names: Sequence[str], every: bool, seeds: int, preset: Preset) -> None:
    """Run the experiments that `names` mean, or list them all where there is nothing to run.

    Raises:
        UserError: there is no such experiment, or a training has failed.
        Interrupted: a signal came; the same command goes on.

    """
    chosen = experiments() if every else select(names)
    if not chosen:
        list_experiments()
        return
    with SignalWatch() as watch:
        for experiment in chosen:
            run_experiment(experiment, preset, range(seeds), watch)


def table() -> None:
    """Write the README's table."""
    write_table(experiments())


def list_experiments() -> None:
    """Print every experiment: its claims, what is known of them here, and how long it takes."""
    rows = [row for experiment in experiments() for row in _rows(experiment)]
    print_table(["experiment", "what the paper says", "paper", "here: quick", "here: full", "quick, full"], rows)
    print("\n`lit-mnist reproduce zhang/cnn` checks one; times are those of 3 seeds on two cores")


def _rows(experiment: Experiment) -> list[list[str]]:
    """A row for each claim that can hold or not."""
    known = {preset: read_result(experiment, preset) for preset in ("quick", "full")}
    took = ", ".join(seconds(60 * experiment.minutes[preset]) for preset in ("quick", "full"))
    head, rows = experiment.id, []
    for claim in experiment.claims:
        if claim.rule is not None:
            checked = [_checked(result, claim.text) for result in known.values()]
            rows.append([head, claim.text, claim.show(claim.paper), *checked, took])
            head = took = ""
    return rows or [[head, experiment.title, "–", *(_checked(result, "") for result in known.values()), took]]


def _checked(result: Result | None, text: str) -> str:
    """Our number and the verdict."""
    if result is None:
        return "–"
    found = [f"{c['ours_shown']}: {c['verdict']}" for c in result["claims"] if c["claim"] == text]
    return found[0] if found else "measured"
