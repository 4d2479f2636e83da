"""Descriptions of runs and experiments in MLflow's UI, as Markdown in which all values are escaped."""

import re
from collections.abc import Mapping, Sequence

from lit_mnist.redaction import redact
from lit_mnist.tracking.mlflow_private import MAX_NOTE_LENGTH, artifact_path, ui_path
from lit_mnist.tracking.queries.reader import STUDY, STUDY_RUN, TRIAL

WIDTH = 100
"""Length of a line of a command, unless one flag is longer: the UI cuts lines at the edge of the window."""
COMMAND = "command"
"""The tag with a run's whole command; MLflow's own column shows only the part after its last slash."""


def escape(text: object) -> str:
    """Return a value as one line of Markdown with all special characters escaped, also for tables."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&-])", r"\\\1", " ".join(str(text).split()))


def code(*commands: str) -> str:
    """Return commands as a block of Markdown, without passwords; long ones as several lines of the shell."""
    # By indentation, since a fenced block would end at backticks in a command.
    lines = [line for command in commands for line in _fold(redact(" ".join(command.splitlines())))]
    return "\n".join(f"    {line}" for line in lines)


def with_comments(commands: Mapping[str, str]) -> list[str]:
    """Return the commands, each followed by a shell comment; the comments are aligned."""
    width = max(map(len, commands))
    return [f"{command:{width}}  # {comment}" for command, comment in commands.items()]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells must be Markdown."""
    # The UI (MLflow 3.17) draws columns without any space between them.
    spaced = [[f"{cell}&emsp;" for cell in cells] for cells in (columns, *rows)]
    lines = [spaced[0], [":---"] * len(columns), *spaced[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def link(text: object, path: str) -> str:
    """Return a link to a page of the UI."""
    return f"[{escape(text)}]({path})"


def image(run_id: str, artifact: str) -> str:
    """Return an image that is an artifact of a run."""
    return f"![{escape(artifact)}]({artifact_path(run_id, artifact)})"


def join(parts: Sequence[str]) -> str:
    """Join paragraphs, the most important first; paragraphs that exceed MLflow's limit are left out."""
    text = ""
    for part in filter(None, parts):
        if len(text) + len(part) + 2 <= MAX_NOTE_LENGTH:
            text += f"\n\n{part}" if text else part
    return text


def describe_fit(
    run_id: str,
    experiment_id: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float] | None = None,
    figures: Sequence[str] = (),
    can_resume: bool = True,
) -> str:
    """Return the description of a fit's run: its result, its commands, its study, its figures.

    Args:
        run_id: The run.
        experiment_id: Its experiment's id; empty if unknown, which leaves out the link to the study.
        tags: The run's tags.
        metrics: Its results; None while it runs.
        figures: Artifacts to show.
        can_resume: False if it has ended and kept no checkpoint to resume from.

    """
    shown = {name: f"{value:.4f}" for name, value in (metrics or {}).items()}
    # The last value of a metric is shown only if it differs from the best value.
    shown = {name: text for name, text in shown.items() if shown.get(f"best/{name}") != text}
    reached = ", ".join(f"{escape(name)} **{text}**" for name, text in shown.items())
    study = ""
    if STUDY_RUN in tags and experiment_id:
        page = link(f"study {tags.get(STUDY)}", ui_path(experiment_id, tags[STUDY_RUN]))
        study = f"Trial {escape(tags.get(TRIAL))} of the {page}: "
    command = code(tags[COMMAND]) if COMMAND in tags else ""
    resume = (
        f"Go on with it, after an interruption or with more epochs:\n\n{code(f'lit-mnist fit --resume {run_id}')}"
        if can_resume
        else "It cannot be resumed with more epochs, since its last checkpoint was not kept: the command above"
        " trains it again. A sweep keeps the checkpoints of its trials with `--keep-checkpoints all`."
    )
    # The link comes first, since the UI shows only the first lines until the description is unfolded.
    return join([study + (reached or "in training"), command, resume, *(image(run_id, name) for name in figures)])


def _fold(command: str) -> list[str]:
    """Break a long command before flags into several lines, which the shell reads as one command."""
    words = re.findall(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""", command)
    if len(command) <= WIDTH or " ".join(words) != command:  # not for comments or unusual quotes
        return [command]
    groups: list[str] = []  # each flag with its values, which stay on one line
    for word in words:
        if groups and not word.startswith("--"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = groups[:1]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 3 <= WIDTH:
            lines[-1] += f" {group}"
        else:
            lines[-1] += " \\"
            lines.append(f"  {group}")
    return lines
