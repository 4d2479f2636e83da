"""Descriptions in MLflow's UI: of the run of a fit, and of the experiment of a packaged configuration."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress

from lit_mnist.redaction import redact
from lit_mnist.tracking.descriptions import COMMAND, code, describe_fit, escape, join
from lit_mnist.tracking.mlflow_private import DESCRIPTION
from lit_mnist.tracking.queries.metrics import without_repeats
from lit_mnist.tracking.queries.reader import TRIAL
from lit_mnist.tracking.run import Run
from lit_mnist.training.config_files import config_names, config_path

SHOWN = 3
"""Number of metrics in a description, the best validation value first."""


def command_tag(arguments: Sequence[str], tags: Mapping[str, str]) -> dict[str, str]:
    """The tag with the command that repeats a fit with these arguments, without passwords.

    For a trial of a sweep, the tracking flags are left out, so that the command creates a run outside the sweep.
    """
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif TRIAL in tags and argument.startswith(("--tracking.", "--trainer.enable_progress_bar")):
            skip = "=" not in argument
        else:
            kept.append(redact(argument))
    return {COMMAND: shlex.join(["lit-mnist", "fit", *kept])}


def describe(
    run: Run,
    tags: Mapping[str, str],
    metrics: Mapping[str, float] | None = None,
    drawn: Sequence[str] = (),
    can_resume: bool = True,
) -> Mapping[str, str]:
    """Set the run's description, at the start and again with the results; returns the run's tags.

    Args:
        run: The run.
        tags: Tags that it was created with; none for a resumed run.
        metrics: Its results; None while it runs.
        drawn: Locations of its figures.
        can_resume: False if it has ended and kept no checkpoint to resume from.

    """
    if COMMAND not in tags:
        tags = {**run.tags(), **tags}
    distinct = without_repeats(metrics or {})
    ordered = sorted(distinct, key=lambda name: not name.startswith("best/"))[:SHOWN]
    figures = [f"figures/{path.rpartition('/')[2]}" for path in drawn]
    shown = {name: distinct[name] for name in ordered}
    text = describe_fit(run.id, run.experiment_id, tags, shown, figures, can_resume)
    run.set_tags({DESCRIPTION: text})
    return tags


def describe_experiment(run: Run) -> None:
    """Give the experiment of a packaged configuration its description: paper, claim and command.

    They come from the comment at the top of the file. An existing description, which may be a user's, is kept.
    """
    if run.mlflow is None or run.experiment not in config_names():
        return
    with suppress(Exception):  # the store may be unreachable; the next fit tries again
        found = run.mlflow.get_experiment(run.experiment_id)
        if DESCRIPTION not in found.tags:
            run.mlflow.set_experiment_tag(run.experiment_id, DESCRIPTION, config_description(run.experiment))


def config_description(name: str) -> str:
    """The comment at the top of a packaged configuration as Markdown; its command becomes a code block."""
    paragraphs: list[list[str]] = [[]]
    for line in config_path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if line == "#":
            paragraphs.append([])
        else:
            paragraphs[-1].append(line.removeprefix("#"))
    is_code = [bool(lines) and all(line.startswith("   ") for line in lines) for lines in paragraphs]
    return join([
        code(*(line.strip() for line in lines)) if indented else escape(" ".join(lines))
        for lines, indented in zip(paragraphs, is_code, strict=True)
    ])  # fmt: skip
