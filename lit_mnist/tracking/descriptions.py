"""Descriptions of runs and experiments in MLflow's UI: Markdown that shows every value as it is."""

import re
from collections.abc import Mapping, Sequence

from lit_mnist.redaction import redact
from lit_mnist.tracking.mlflow_private import MAX_NOTE_LENGTH, artifact_path, ui_path
from lit_mnist.tracking.queries.reader import STUDY, STUDY_RUN, TRIAL

COMMAND = "command"
"""The tag with a run's whole command; MLflow's own column shows only what follows its last slash."""


def escape(text: object) -> str:
    """Return a value as Markdown of one line in which no character has a meaning of its own, also in a table."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&-])", r"\\\1", " ".join(str(text).split()))


def code(*lines: str) -> str:
    """Return commands as a block of Markdown, without passwords."""
    # By indentation: a fence would end at a backtick in a command.
    return "\n".join(f"    {redact(' '.join(line.splitlines()))}" for line in lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def link(text: object, path: str) -> str:
    """Return a link to a page of the UI."""
    return f"[{escape(text)}]({path})"


def image(run_id: str, artifact: str) -> str:
    """Return an image that is an artifact of a run."""
    return f"![{escape(artifact)}]({artifact_path(run_id, artifact)})"


def join(parts: Sequence[str]) -> str:
    """Join paragraphs, the most important first; those that exceed what MLflow accepts are left out."""
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
) -> str:
    """Return the description of a fit's run: its result, its commands, its study, its figures.

    Args:
        run_id: The run.
        experiment_id: Its experiment's id; empty if unknown, which leaves out the link to the study.
        tags: The run's tags.
        metrics: What it has reached; None while it runs.
        figures: Artifacts to show.

    """
    reached = ", ".join(f"{escape(name)} **{value:.4f}**" for name, value in (metrics or {}).items())
    study = ""
    if STUDY_RUN in tags and experiment_id:
        page = link(f"study {tags.get(STUDY)}", ui_path(experiment_id, tags[STUDY_RUN]))
        study = f"Trial {escape(tags.get(TRIAL))} of the {page}: "
    command = code(tags[COMMAND]) if COMMAND in tags else ""
    resume = (
        f"Go on with it, after an interruption or with more epochs:\n\n{code(f'lit-mnist fit --resume {run_id}')}"
    )
    # The link first: until the description is unfolded, the UI covers what is below its first lines.
    return join([study + (reached or "in training"), command, resume, *(image(run_id, name) for name in figures)])
