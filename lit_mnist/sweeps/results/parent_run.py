"""What the parent run of a study receives in MLflow: `summary.json`, metrics, figures and one HTML page."""

import importlib.util
import json
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import create_trial

from lit_mnist.errors import UserError
from lit_mnist.sweeps.results import figures
from lit_mnist.sweeps.results.heat_map import heat_map
from lit_mnist.sweeps.study.summary import STATES, StudySummary, point, read_summary, runs
from lit_mnist.terminal import note
from lit_mnist.tracking.run import Run
from lit_mnist.training.evaluate import draw_best_checkpoint

MIN_TRIALS = 3
"""Complete trials from which parameter importances are estimated."""


def log_summary(study: optuna.Study, run: Run) -> None:
    """Log the state of the study to its parent run: `summary.json`, metrics, figures and `figures/study.html`.

    Args:
        study: The study, finished or not. One without trials logs nothing, one without complete trials no figures.
        run: Its parent run.

    """
    summary = read_summary(study)
    if not summary.trials:
        return
    plain = summary_json(summary)
    run.log_text(json.dumps(plain, indent=1), "summary.json")
    counts = {name: float(plain["trials"][name]) for name in ("complete", "pruned", "failed")}
    done = len(summary.finished)
    run.log_metrics({"trials": float(done), **counts, **plain["best"]}, done)
    if not summary.complete:
        return
    importances = estimate_importances(summary)
    pair = heat_map_parameters(summary, importances)
    for name, figure in draw_figures(summary, importances, pair).items():
        run.log_figure(figure, name)
    # Trials draw nothing, since hundreds of figures fill a disk: only the best one gets what a fit has.
    for run_id in runs(summary.best()[0])[:1] if summary.best() else ():
        try:
            draw_best_checkpoint(run_id)
        except UserError as error:
            note(f"no figure of the best trial's predictions: {error}")
    if importlib.util.find_spec("plotly") is None:
        note("figures/study.html is not written: it needs plotly, `pip install 'lit-mnist[html]'`")
        return
    from lit_mnist.sweeps.results import html

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "study.html"
        page.write_text(html.page(study, summary, importances, pair), encoding="utf-8")
        run.log_file(page, "figures")


def summary_json(summary: StudySummary) -> dict[str, Any]:
    """The state of the study as plain types: trials by state, best values, best trials with their runs."""
    front = summary.best()
    best = {}
    for i, metric in enumerate(summary.objectives):
        values = [trial.values[i] for trial in front if math.isfinite(trial.values[i])]
        if values:
            best[f"best/{metric.removeprefix('best/')}"] = max(values) if summary.upwards[i] else min(values)
    states = {word: summary.count(state) for state, word in STATES.items()}
    return {
        "study": summary.name,
        "trials": {"wanted": summary.budget, "finished": len(summary.finished), **states},
        "best": best,
        "best_trials": [
            {
                "number": trial.number,
                "values": dict(zip(summary.objectives, trial.values, strict=True)),
                "point": point(trial),
                "runs": list(runs(trial)),
            }
            for trial in front
        ],
    }


def draw_figures(
    summary: StudySummary, importances: Mapping[str, float], pair: tuple[str, str] | None
) -> dict[str, Figure]:
    """Draw every static figure that the study has enough trials for; returns them by name.

    Args:
        summary: A study with at least one complete trial.
        importances: By parameter; empty if they are not known.
        pair: The parameters of the heat map; None for no heat map.

    """
    drawn = {"history": figures.history(summary)}
    if importances:
        drawn["importances"] = figures.importance_bars(summary, importances)
        drawn["parallel_coordinates"] = figures.parallel_coordinates(summary, list(importances))
    if pair is not None:
        drawn["heat_map"] = heat_map(summary, *pair)
    if len(summary.objectives) == 2:
        drawn["pareto_front"] = figures.pareto_front(summary)
    return drawn


def estimate_importances(summary: StudySummary) -> dict[str, float]:
    """The share of the first objective's variation that each parameter explains, largest first.

    Empty if there are fewer than three trials with a finite value, fewer than two parameters that varied, or only
    one distinct value.
    """
    trials = [trial for trial in summary.complete if math.isfinite(trial.values[0])]
    tried = {(name, repr(value)) for trial in trials for name, value in trial.params.items()}
    varied = [name for name, count in Counter(name for name, _ in tried).items() if count > 1]
    if len(trials) < MIN_TRIALS or len(varied) < 2 or len({trial.values[0] for trial in trials}) < 2:
        return {}
    # A study in memory with the usable trials alone: Optuna's evaluators take a whole study.
    usable = optuna.create_study()
    for trial in trials:
        params, distributions = trial.params, trial.distributions
        usable.add_trial(create_trial(value=summary.cost(trial)[0], params=params, distributions=distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # experimental until Optuna 5.0, there the default
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(usable, evaluator=evaluator)
    # Optuna gives a small share to parameters that had the same value in every trial.
    importances = {name: float(share) for name, share in found.items() if name in varied}
    return importances if sum(importances.values()) > 0 else {}


def heat_map_parameters(summary: StudySummary, importances: Mapping[str, float]) -> tuple[str, str] | None:
    """The parameters of the heat map: a learning rate and its momentum, or else the two most important numbers.

    Only numeric parameters count that every trial has and that took more than one value; None without two of them.
    """
    trials = [trial for trial in summary.complete if math.isfinite(trial.values[0])]
    numeric = []
    for name in importances:
        distributions = [trial.distributions.get(name) for trial in trials]
        if not all(isinstance(each, FloatDistribution | IntDistribution) for each in distributions):
            continue
        if len({trial.params[name] for trial in trials}) > 1:
            numeric.append(name)
    for rate in numeric:
        momentum = f"{rate.rpartition('.')[0]}.momentum"
        if rate.endswith(".lr") and momentum in numeric:
            return rate, momentum
    return (numeric[0], numeric[1]) if len(numeric) > 1 else None
