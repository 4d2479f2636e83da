"""The page `figures/study.html`: the study's figures with the details of each trial, as one self-contained file.

The figures are those of the PNGs in SVG format, so that page and PNGs cannot differ. A page with plotly would be
at least as large as plotly's script (7.1): 4.8 MB, or 2 MB compressed. These pages have 0.1 MB for 15 trials and
0.9 MB for 300. The trial under the pointer is highlighted in every figure; zooming is that of the browser.
"""

import io
import re
import shlex
from collections.abc import Mapping
from importlib import resources
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import matplotlib
import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from lit_mnist.errors import UserError
from lit_mnist.sweeps.results.plotting import address, show_metric
from lit_mnist.sweeps.search.spec import Spec, trial_stage
from lit_mnist.sweeps.study.study import COMPLETE, FAIL, PRUNED, stored_spec
from lit_mnist.sweeps.study.summary import STATES, StudySummary, point, read_summary, runs, show_point
from lit_mnist.tracking.mlflow_private import ui_path

DEFAULT_UI = "http://127.0.0.1:5000"
"""The address of `lit-mnist ui` if the store is a file."""
MAX_FIGURES = 1_100_000
"""Maximum number of characters of a page's figures. With very many trials, the last figures are only PNGs."""


def page(study: optuna.Study, figures: Mapping[str, Figure], store: str, experiment_id: str) -> str:
    """Return the page of a study.

    Args:
        study: The study.
        figures: Its figures by name, in the order of the page.
        store: The tracking store's URI, for links to its server.
        experiment_id: The MLflow experiment of its runs.

    """
    from jinja2 import Environment, StrictUndefined

    summary = read_summary(study)
    try:
        spec = stored_spec(study)
    except UserError:  # written by a version with other keys: the page has no commands
        spec = None
    # Figures that do not fit are listed by name; they exist as PNGs.
    shown: dict[str, str] = {}
    for figure_name, figure in figures.items():
        svg = to_svg(figure, figure_name)
        if sum(map(len, shown.values())) + len(svg) <= MAX_FIGURES:
            shown[figure_name] = svg
    # With autoescape, since names of studies and error messages may contain HTML.
    template = (resources.files("lit_mnist.sweeps.results") / "study.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        name=summary.name,
        counts=f"{len(summary.finished)} of {summary.budget} trials: {summary.counts()}",
        objectives=summary.objectives,
        best={trial.number for trial in summary.best()},
        figures=shown,
        left_out=[f"{figure_name}.png" for figure_name in figures if figure_name not in shown],
        trials=[_describe(summary, spec, trial) for trial in summary.trials],
        run_path=ui_path(experiment_id, "RUN"),
        server=_server(store),
    )


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element; `name` makes the ids of its parts unique within a page."""
    # Text is stored as text, which needs a tenth of the size of outlines and can be searched.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        text = file.getvalue()
    # Reduce coordinates (in 1/72 inch) to two decimals; six decimals make up a third of the file.
    text = re.sub(r'\b(?:x|y|d)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), text)
    # Remove indentation, and let links open in the page itself.
    text = re.sub(r"\n\s+", "\n", text).replace(' target="_blank"', "")
    return text[text.index("<svg") :]


def _describe(summary: StudySummary, spec: Spec | None, trial: FrozenTrial) -> dict[str, Any]:
    """The details of a trial for the page."""
    # A pruned trial has only the last value of the first objective.
    values = []
    for i, metric in enumerate(summary.objectives):
        value = trial.values[i] if trial.values else summary.value(trial) if i == 0 else None
        values.append("" if value is None else show_metric(metric, value, summary.interval(trial, i)))
    result = ", ".join(f"{metric} {value}" for metric, value in zip(summary.objectives, values, strict=True))
    reason = str(trial.user_attrs.get("reason", ""))
    # The reason of a pruner that compares validations includes the value; the table has the values of all trials.
    outcomes = {COMPLETE: result, PRUNED: f"pruned {reason}".strip(), FAIL: f"failed: {reason}"}
    # The command that trains this point from the start, or otherwise the one that resumes its run.
    run_ids = list(runs(trial))
    command = f"lit-mnist fit --resume {run_ids[0]}" if run_ids else ""
    # If a trial starts from another training's checkpoint, there is no single command.
    if spec is not None and spec.source is None and point(trial):
        arguments = trial_stage(spec, point(trial)).arguments("full", spec.seeds[0])
        command = shlex.join(["lit-mnist", "fit", *arguments])
    return {
        "number": trial.number,
        "address": address(trial),
        "state": STATES[trial.state],
        "reason": reason,
        "values": values,
        "outcome": outcomes.get(trial.state, STATES[trial.state]),
        "point": show_point(point(trial)),
        "runs": run_ids,
        "command": command,
    }


def _server(store: str) -> str:
    """The address of MLflow's pages, without user and password."""
    url = urlsplit(store)
    # A file store has no server, so MLflow's pages are expected at their default address.
    if url.scheme not in ("http", "https"):
        return DEFAULT_UI
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2])).rstrip("/")
