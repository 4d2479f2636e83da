"""`lit-mnist reproduce --table`: write the tables in docs/results.md from the stored results."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.papers.report.results import PAGE, Result, best_result, judge_again, seeds_shown
from lit_mnist.papers.report.statistics import FLOOR
from lit_mnist.terminal import seconds
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.store import find_store

BEGIN, END = "<!-- results -->", "<!-- /results -->"
BETWEEN_MARKERS = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
VERSIONS = ("lit_mnist", "python", "torch", "lightning", "mlflow")
NOTE = (
    "Ours: mean over the seeds ± half the 95 % interval (Student's t). –: the paper gives no number, or ours was"
    ' not measured. In brackets: the claim\'s rule; for "within", the difference from the number it names;'
    " for an ordering of several numbers, its closest part, as paired differences over seeds. **Fewer than"
    f" {FLOOR} seeds**: the exact sign-flip test cannot reach p = 0.05; only where a training takes hours is there"
    " a verdict, by Student's t alone. p: two-sided, corrected for all claims tested in the experiment (Holm);"
    " intervals are not corrected, so a claim may be undecided although its interval excludes the bound. An"
    " accuracy near 99 % on 10,000 test images is itself uncertain by ± 0.2 points, one on 600 images by ± 2 to 4."
    " Training times include stages that several experiments share, and exclude the measurements."
)


def write_table(every: Sequence[Experiment], folder: Path) -> None:
    """Replace the text between the markers of docs/results.md; print the table if there is no such page.

    All claims are judged again, since claims may have been changed or added after the measurements.
    """
    # Before reading the results, so that the page does not show verdicts on earlier claims.
    for experiment in every:
        judge_again(folder, experiment)
    results = [result for experiment in every if (result := best_result(folder, experiment)) is not None]
    if not results:
        print("no results yet: `lit-mnist reproduce zhang/cnn` makes some")
        return
    # Without a checkout (for an installed package) there is no page, and the table is printed.
    page = find_store().home.parent / PAGE
    if not (page.is_file() and BETWEEN_MARKERS.search(page.read_text())):
        print(make_table(results))
        return
    known = f"Results so far: {len(results)} of {len(every)} experiments."
    parts = [known, "", make_table(results), _figures(results, folder, page)]
    text = "\n".join([BEGIN, *parts, END])
    # A function as replacement, since backslashes in a string would be interpreted.
    replace_text(page, BETWEEN_MARKERS.sub(lambda _: text, page.read_text(), count=1))
    print(f"{page}: {len(results)} of {len(every)} experiments")


def make_table(results: Sequence[Result]) -> str:
    """Markdown with the counts of verdicts, a row per claim, and how each experiment was measured."""
    # The papers' claims and this project's own hypotheses are counted separately.
    lines = []
    for title, are_findings in (("The papers' claims", False), ("This project's own findings", True)):
        chosen = [r for r in results if r["experiment"].startswith("findings/") == are_findings]
        verdicts = Counter(claim["verdict"] for result in chosen for claim in result["claims"])
        others = verdicts.pop("ours", 0)
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        if chosen:
            lines.append(f"- {title}: {counts or 'none'}; and {others} further numbers.")
    lines.append("")
    lines += ["| experiment | claim | paper | ours | verdict | p |", "|---|---|---|---|---|---|"]
    for result in results:
        seeds = seeds_shown(result)
        if len(result["seeds"]) < FLOOR and result["length"] == "full":
            seeds = f"**{seeds}**"
        head = f"`{result['experiment']}`<br>{result['length']}, {seeds}"
        for claim in result["claims"]:
            # The shortening is described once, below.
            why = claim["why"] if claim["verdict"] != "not tested at the paper's length" else ""
            rule = "" if claim["verdict"] in ("ours", "not comparable") else claim["rule"] or ""
            reasons = "; ".join(filter(None, (rule, why)))
            verdict = claim["verdict"] + (f" ({reasons})" if reasons else "")
            p = "" if claim["p"] is None else "< 0.001" if claim["p"] < 0.001 else f"{claim['p']:.3f}"
            cells = (claim["claim"], claim["paper_shown"], claim["ours_shown"], verdict, p)
            escaped = [cell.replace("|", r"\|") for cell in cells]
            lines.append(f"| {head} | {' | '.join(escaped)} |")
            head = ""  # the experiment's name is only in its first row
    # One entry per experiment: the command, the environment, and the reasons for its margins.
    lines += ["", NOTE, "", "How each experiment's rows were made:", ""]
    for result in results:
        entries = result["seeds"].values()
        # Nine of the commit's 40 digits, and the text after them that says whether the code had changes.
        commits = sorted({f"{entry['commit'][:9]}{entry['commit'][40:]}" for entry in entries})
        took = seconds(sum(entry["seconds"] for entry in entries))
        where = sorted({
            f"{entry['device']}; " + ", ".join(f"{name} {entry['versions'][name]}" for name in VERSIONS)
            for entry in entries
        })  # fmt: skip
        lines.append(
            f"- `{result['command']}`: {took} to train its stages; measured at commit {', '.join(commits)}, MLflow"
            f" ``{result['filter']}``, on {' and '.join(where)}"
            + (f". Shortened: {result['cut']}." if result["cut"] else ".")
        )
        margins: dict[str, list[str]] = {}
        for claim in result["claims"]:
            if claim["margin"] and claim["rule"] not in margins.setdefault(claim["margin"], []):
                margins[claim["margin"]].append(claim["rule"])
        lines += [f"  - {', '.join(rules)}: {margin}." for margin, rules in margins.items()]
    return "\n".join(lines)


def _figures(results: Sequence[Result], folder: Path, page: Path) -> str:
    """The findings of experiments, each with the experiment's first figure."""
    lines = []
    for result in results:
        # Only for experiments with a finding; all other figures are next to their results.
        if result["finding"]:
            lines.append(f"\n**`{result['experiment']}`** {result['finding']}\n")
        if result["finding"] and result["figures"]:
            file = folder / result["experiment"].partition("/")[0] / result["figures"][0]
            link = Path(os.path.relpath(file, page.parent)).as_posix()
            lines.append(f"![{result['title']}]({link})")
    return "\n".join(lines)
