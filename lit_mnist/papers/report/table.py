"""The results as a table for the README, written from the JSON files alone."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.papers.report.results import Result, latest_result
from lit_mnist.terminal import seconds
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.store import find_store

BEGIN, END = "<!-- results -->", "<!-- /results -->"
PLACE = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
FIGURES = "docs"
"""Folder beside the README for the figures in it."""
NAMED = ("lit_mnist", "python", "torch", "lightning", "mlflow")


def write_table(every: Sequence[Experiment]) -> None:
    """Put the table between the README's markers; print it where there are none, or no results."""
    results = [result for experiment in every if (result := latest_result(experiment)) is not None]
    if not results:
        print("no results yet: `lit-mnist reproduce zhang/cnn` makes some")
        return
    readme = find_store().home.parent / "README.md"
    if not (readme.is_file() and PLACE.search(readme.read_text())):
        print(make_table(results))
        return
    _put(readme, f"{make_table(results)}\n{_findings(results, readme.parent)}")
    print(f"{readme}: {len(results)} of {len(every)} experiments")


def make_table(results: Sequence[Result]) -> str:
    """Markdown: a row for each claim, and below what was cut, on which device, with which versions."""
    lines = ["| experiment | claim | paper | ours | verdict |", "|---|---|---|---|---|"]
    for result in results:
        head = f"`{result['experiment']}`<br>{_length(result)}, {_seeds(result)}"
        for claim in result["claims"]:
            cells = (claim["claim"], claim["paper_shown"], claim["ours_shown"], claim["verdict"])
            lines.append(f"| {head} | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
            head = ""
    lines += [
        "",
        "Ours: mean over the seeds ± half the 95 % interval of Student's t. –: the paper gives no figure."
        " Times are the sum of the trainings' own clocks, all seeds and shared stages included, whatever else the"
        " machine did meanwhile.",
        "",
    ]
    for result in results:
        cut = f"; cut: {result['cut']}" if result["cut"] else ""
        lines.append(f"- `{result['experiment']}`: trained for {seconds(result['seconds'])}{cut}.")
    return "\n".join([*lines, "", *_circumstances(results)])


def _length(result: Result) -> str:
    """The preset, or full where the quick one cuts nothing."""
    return result["preset"] if result["cut"] else "full"


def _seeds(result: Result) -> str:
    count = len(result["seeds"])
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _circumstances(results: Sequence[Result]) -> list[str]:
    """Device and versions, once for all results that share them."""
    groups: dict[str, list[str]] = {}
    for result in results:
        versions = ", ".join(f"{name} {result['versions'][name]}" for name in NAMED)
        groups.setdefault(f"{result['device']}; {versions}", []).append(result["experiment"])
    if len(groups) == 1:
        return [f"On {next(iter(groups))}."]
    return [f"- {', '.join(f'`{name}`' for name in names)} on {where}." for where, names in groups.items()]


def _findings(results: Sequence[Result], project: Path) -> str:
    """What the papers did not see, each with its figure, of which the project gets a copy."""
    parts = []
    for result in results:
        if result["finding"]:
            name, image = next(iter(result["figures"].items()))
            copy = project / FIGURES / f"{result['experiment'].replace('/', '_')}_{name}.png"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(image, copy)
            parts.append(f"\n**`{result['experiment']}`** {result['finding']}\n")
            parts.append(f"![{result['title']}]({FIGURES}/{copy.name})")
    return "\n".join(parts)


def _put(readme: Path, text: str) -> None:
    """Put `text` between the README's markers."""
    replace_text(readme, PLACE.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme.read_text(), count=1))
