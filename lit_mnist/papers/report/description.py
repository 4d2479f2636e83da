"""Descriptions in MLflow's UI: of the run of a reproduction, and of a paper's MLflow experiment."""

import importlib
from collections import Counter
from collections.abc import Sequence

from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.papers.report.results import Result, seeds_shown
from lit_mnist.tracking.descriptions import code, escape, image, join, table


def describe_result(result: Result, run_id: str, figures: Sequence[str]) -> str:
    """Return the description of the run of a reproduction: the verdict on each claim, the paper and the command.

    Args:
        result: The stored result.
        run_id: The run.
        figures: Artifacts of the run to show.

    """
    # The description is Markdown, so texts are escaped, since they may contain "*" or "|".
    counts = Counter(claim["verdict"] for claim in result["claims"])
    words = {"holds": "hold"}  # plural forms
    verdicts = ", ".join(
        f"{count} {escape(words.get(word, word) if count > 1 else word)}" for word, count in counts.items()
    )
    shortened = f" Shortened: {escape(result['cut'])}." if result["cut"] else ""
    rows = [
        [escape(claim[key]) for key in ("claim", "paper_shown", "ours_shown", "verdict")]
        for claim in result["claims"]
    ]
    return join([
        f"Claims: {verdicts} ({result['length']} length, {seeds_shown(result)})."
        f" {escape(result['title'])}.{shortened}",
        table(["claim", "paper", "ours", "verdict"], rows),
        escape(result["finding"]),
        f"Paper: {_paper(result['experiment'].partition('/')[0])}",
        code(result["command"]),
        # Not as `code`, since a filter is not a command.
        f"The runs behind the numbers: {escape(result['filter'])}",
        *(image(run_id, path) for path in figures),
    ])  # fmt: skip


def describe_paper(paper: str, experiments: Sequence[Experiment]) -> str:
    """Return the description of a paper's MLflow experiment: the paper, its experiments, and their commands."""
    # Only claims with a rule, since the table would otherwise be too long.
    of_paper = [experiment for experiment in experiments if experiment.paper == paper]
    rows = [
        [escape(each.id), escape(each.title), escape("; ".join(c.text for c in each.claims if c.rule is not None))]
        for each in of_paper
    ]
    return join([
        f"Reproduction of {_paper(paper)}",
        code(f"lit-mnist reproduce {paper}", *(f"lit-mnist reproduce {each.id}" for each in of_paper)),
        table(["experiment", "what it is", "what the paper claims"], rows),
    ])  # fmt: skip


def _paper(name: str) -> str:
    """Authors, subject and title of a paper, from the docstring of its module."""
    text = importlib.import_module(f"lit_mnist.papers.{name}").__doc__ or name
    return escape(text)
