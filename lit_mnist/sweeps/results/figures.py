"""A study's figures and summary, in its parent run."""

import importlib.util
import json
import math
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, create_trial

from lit_mnist.sweeps.results import drawing
from lit_mnist.sweeps.study.summary import STATES, StudySummary, point, read_summary, runs
from lit_mnist.terminal import note
from lit_mnist.tracking.run import Run

FEWEST = 3
"""Complete trials below which there is nothing to say of parameters."""


def log_summary(study: optuna.Study, run: Run) -> None:
    """Log what the study has come to: `summary.json`, metrics, figures, and all of them to explore on one page.

    Args:
        study: The study, finished or not.
        run: Its parent run.

    """
    found = read_summary(study)
    if not found.trials:
        return
    told = summary(found)
    run.log_text(json.dumps(told, indent=1), "summary.json")
    counts = {name: float(told["trials"][name]) for name in ("complete", "pruned", "failed")}
    done = len(found.finished)
    run.log_metrics({"trials": float(done), **counts, **told["best"]}, done)
    if not found.complete:
        return
    shares = importances(found)
    for name, figure in drawing.draw(found, shares, main_pair(found, shares)).items():
        run.log_figure(figure, name)
    if importlib.util.find_spec("plotly") is None:
        note("figures/study.html is not written: it needs plotly, `pip install 'lit-mnist[html]'`")
        return
    from lit_mnist.sweeps.results import html as interactive

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "study.html"
        page.write_text(interactive.page(study, found, shares, main_pair(found, shares)), encoding="utf-8")
        run.log_file(page, "figures")


def summary(found: StudySummary) -> dict[str, Any]:
    """What the study has come to, as plain JSON."""
    front = found.best()
    best = {}
    for i, goal in enumerate(found.objectives):
        reached = [trial.values[i] for trial in front if math.isfinite(trial.values[i])]
        if reached:
            best[f"best/{goal.removeprefix('best/')}"] = max(reached) if found.upwards[i] else min(reached)
    states = {word: found.count(state) for state, word in STATES.items()}
    return {
        "study": found.name,
        "trials": {"wanted": found.budget, "finished": len(found.finished), **states},
        "best": best,
        "best_trials": [
            {"number": t.number, "values": dict(zip(found.objectives, t.values, strict=True)), "point": point(t),
             "runs": list(runs(t))}
            for t in front
        ],
    }  # fmt: skip


def importances(found: StudySummary) -> dict[str, float]:
    """How much of the first goal's differences each parameter accounts for, the largest first.

    Empty where that cannot be said: too few trials, one parameter, one value.
    """
    usable = [trial for trial in found.complete if math.isfinite(trial.values[0])]
    tried = {(name, repr(value)) for trial in usable for name, value in trial.params.items()}
    varied = [name for name, count in Counter(name for name, _ in tried).items() if count > 1]
    if len(usable) < FEWEST or len(varied) < 2 or len({trial.values[0] for trial in usable}) < 2:
        return {}
    alone = optuna.create_study()
    for trial in usable:
        params, distributions = trial.params, trial.distributions
        alone.add_trial(create_trial(value=found.cost(trial)[0], params=params, distributions=distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # it became Optuna's default, and stable, in 5.0
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(alone, evaluator=evaluator)
    shares = {name: share for name, share in shares.items() if name in varied}
    return {name: float(share) for name, share in shares.items()} if sum(shares.values()) > 0 else {}


def main_pair(found: StudySummary, shares: dict[str, float]) -> tuple[str, str] | None:
    """The parameters of the map: learning rate and momentum, or else the two most important numbers."""
    usable = [trial for trial in found.complete if math.isfinite(trial.values[0])]
    names = [name for name in shares if _is_number(name, usable)]
    for rate in names:
        momentum = f"{rate.rpartition('.')[0]}.momentum"
        if rate.endswith(".lr") and momentum in names:
            return rate, momentum
    return (names[0], names[1]) if len(names) > 1 else None


def _is_number(name: str, trials: list[FrozenTrial]) -> bool:
    """Whether every trial has a number of that name, not all the same."""
    if not all(name in trial.params for trial in trials):
        return False
    kinds = (optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution)
    values = {trial.params[name] for trial in trials}
    return len(values) > 1 and all(isinstance(trial.distributions[name], kinds) for trial in trials)
