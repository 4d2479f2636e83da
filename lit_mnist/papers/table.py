"""The results as a table for the README, written from the JSON files alone."""

import re
from collections.abc import Sequence
from pathlib import Path

from lit_mnist.papers.experiment import Experiment
from lit_mnist.papers.results import Result, latest_result
from lit_mnist.tracking.spool import replace_text
from lit_mnist.tracking.store import find_store
from lit_mnist.tracking.terminal import seconds

BEGIN, END = "<!-- results -->", "<!-- /results -->"
NAMED = ("lit_mnist", "python", "torch", "lightning", "mlflow")


def write_table(every: Sequence[Experiment]) -> None:
    """Put the table between the README's markers; print it where there are none, or no results."""
    results = [result for experiment in every if (result := latest_result(experiment)) is not None]
    if not results:
        print("no results yet: `lit-mnist reproduce zhang/cnn` makes some")
        return
    table = make_table(results)
    readme = find_store().home.parent / "README.md"
    if not (readme.is_file() and _put(readme, table)):
        print(table)
        return
    print(f"{readme}: {len(results)} of {len(every)} experiments")


def make_table(results: Sequence[Result]) -> str:
    """Markdown: a row for each claim, and below what was cut, on which device, with which versions."""
    lines = ["| experiment | claim | paper | ours | verdict |", "|---|---|---|---|---|"]
    for result in results:
        head = f"`{result['experiment']}`<br>{result['preset']}, {_seeds(result)}"
        for claim in result["claims"]:
            cells = (claim["claim"], claim["paper_shown"], claim["ours_shown"], claim["verdict"])
            lines.append(f"| {head} | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
            head = ""
    lines += [
        "",
        "Ours: mean over the seeds ± half the 95 % interval of Student's t. –: the paper gives no figure.",
        "",
    ]
    for result in results:
        cut = f"; cut: {result['cut']}" if result["cut"] else ""
        finding = f" {result['finding']}" if result["finding"] else ""
        lines.append(f"- `{result['experiment']}`: trained for {seconds(result['seconds'])}{cut}.{finding}")
    return "\n".join([*lines, "", *_circumstances(results)])


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


def _put(readme: Path, table: str) -> bool:
    """Whether the README has markers, between which the table now stands."""
    text = readme.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        return False
    replace_text(readme, pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", text, count=1))
    return True
