"""`lit-mnist reproduce --table`: the tables in docs/results.md, written from the stored results alone."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.papers.report.results import Result, latest_result
from lit_mnist.terminal import seconds
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.store import find_store

PAGE = Path("docs", "results.md")
"""Below the project's folder; figures that the page shows are copied beside it."""
BEGIN, END = "<!-- results -->", "<!-- /results -->"
BETWEEN_MARKERS = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
VERSIONS = ("lit_mnist", "python", "torch", "lightning", "mlflow")


def write_table(every: Sequence[Experiment]) -> None:
    """Replace the text between the markers of docs/results.md; print the table if there is no such page."""
    results = [result for experiment in every if (result := latest_result(experiment)) is not None]
    if not results:
        print("no results yet: `lit-mnist reproduce zhang/cnn` makes some")
        return
    page = find_store().home.parent / PAGE
    if not (page.is_file() and BETWEEN_MARKERS.search(page.read_text())):
        print(make_table(results))
        return
    parts = [make_table(results)]
    for result in results:
        if result["finding"]:
            name, image = next(iter(result["figures"].items()))
            copy = page.with_name(f"{result['experiment'].replace('/', '_')}_{name}.png")
            shutil.copyfile(image, copy)
            parts.append(f"\n**`{result['experiment']}`** {result['finding']}\n")
            parts.append(f"![{result['title']}]({copy.name})")
    text = "\n".join([BEGIN, *parts, END])
    # A function, since a string would have its backslashes interpreted.
    replace_text(page, BETWEEN_MARKERS.sub(lambda _: text, page.read_text(), count=1))
    print(f"{page}: {len(results)} of {len(every)} experiments")


def make_table(results: Sequence[Result]) -> str:
    """Markdown with a row per claim; below it training times, what was cut, device and versions."""
    lines = ["| experiment | claim | paper | ours | verdict |", "|---|---|---|---|---|"]
    for result in results:
        length = result["preset"] if result["cut"] else "full"  # a quick preset that cuts nothing is the full one
        count = len(result["seeds"])
        head = f"`{result['experiment']}`<br>{length}, {count} {'seed' if count == 1 else 'seeds'}"
        for claim in result["claims"]:
            cells = (claim["claim"], claim["paper_shown"], claim["ours_shown"], claim["verdict"])
            escaped = [cell.replace("|", r"\|") for cell in cells]
            lines.append(f"| {head} | {' | '.join(escaped)} |")
            head = ""
    lines += [
        "",
        "Ours: mean over the seeds ± half the 95 % interval (Student's t). –: the paper gives no number. Times are"
        " summed over the trainings of all seeds, shared stages included; the machine had other work meanwhile.",
        "",
    ]
    circumstances: dict[str, list[str]] = {}
    for result in results:
        cut = f"; shortened: {result['cut']}" if result["cut"] else ""
        lines.append(f"- `{result['experiment']}`: trained for {seconds(result['seconds'])}{cut}.")
        versions = ", ".join(f"{name} {result['versions'][name]}" for name in VERSIONS)
        circumstances.setdefault(f"{result['device']}; {versions}", []).append(f"`{result['experiment']}`")
    lines.append("")
    if len(circumstances) == 1:
        return "\n".join([*lines, f"On {next(iter(circumstances))}."])
    return "\n".join([*lines, *(f"- {', '.join(names)} on {where}." for where, names in circumstances.items())])
