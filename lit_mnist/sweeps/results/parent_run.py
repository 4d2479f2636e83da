"""Files that are logged to the parent run of a study in MLflow: `summary.json`, figures and one HTML page.

The best value and the numbers of trials are in the description and not logged as metrics, for which MLflow would
draw charts with a single dot.
"""

import json
import math
from typing import Any

import optuna

from lit_mnist.errors import UserError
from lit_mnist.sweeps.results.figures import draw_figures
from lit_mnist.sweeps.results.html import page
from lit_mnist.sweeps.study.summary import STATES, StudySummary, point, read_summary, runs
from lit_mnist.terminal import note
from lit_mnist.tracking.run import Run
from lit_mnist.tracking.store import find_store
from lit_mnist.training.evaluate import draw_best_checkpoint


def log_summary(study: optuna.Study, run: Run) -> None:
    """Log the state of the study to its parent run: `summary.json`, figures and `figures/study.html`.

    Args:
        study: The study, finished or not. Without trials nothing is logged; without values there are no figures.
        run: Its parent run.

    """
    # The numbers first, so that they are logged even if a figure cannot be drawn.
    summary = read_summary(study)
    if not summary.trials:
        return
    run.log_text(json.dumps(summary_json(summary), indent=1), "summary.json")
    if all(summary.value(trial) is None for trial in summary.trials):
        return
    drawn = draw_figures(summary)
    for name, figure in drawn.items():
        run.log_figure(figure, name)
    experiment_id = run.client.get_run(run.id).info.experiment_id
    run.log_text(page(study, drawn, find_store().uri, experiment_id), "figures/study.html")
    # Trials draw no figures, since hundreds of them would fill a disk; only the best trial gets those of a fit.
    for run_id in runs(summary.best()[0])[:1] if summary.best() else ():
        try:
            draw_best_checkpoint(run_id)
        except UserError as error:
            note(f"no figure of the best trial's predictions: {error}")


def summary_json(summary: StudySummary) -> dict[str, Any]:
    """The state of the study as plain types: trials by state, best values, best trials with their runs."""
    front = summary.best()
    best = {}
    for i, metric in enumerate(summary.objectives):
        values = [trial.values[i] for trial in front if math.isfinite(trial.values[i])]
        # The best value of each objective; with several objectives, these may belong to different trials.
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
