"""The importance of each parameter for the first objective, including pruned trials."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState, create_trial

from lit_mnist.sweeps.results.plotting import varied_names
from lit_mnist.sweeps.search.optuna_private import importance_evaluator
from lit_mnist.sweeps.study.summary import StudySummary

MIN_TRIALS = 10
"""Minimum number of trials for estimating importances; with fewer trials, their order is random."""
TOP = 1 / 3
"""The share of trials that count as good. With Optuna's default of a tenth, only 3 of 30 trials would count, and a
parameter by which half of the trials fail would be less important than one that matters only among the best."""
MIN_TOP = 5
"""Minimum number of trials that count as good, as recommended by Optuna's documentation."""


@dataclass(frozen=True)
class Importances:
    """The importances of the parameters, and the data from which they were estimated."""

    shares: Mapping[str, float]
    """Importance by parameter, largest first, with a sum of 1; without parameters that never varied."""
    source: str
    """Description of the trials and values, such as "24 trials at their end"."""


def estimate_importances(summary: StudySummary) -> Importances | None:
    """Estimate by PED-ANOVA which parameters distinguish the best third of the trials from all trials.

    If trials were pruned, all trials are compared at the last step that all of them reached. Using only final
    values would exclude pruned trials, and so the parameters that matter most.

    Returns:
        The importances; None with fewer than ten usable trials, fewer than two varied parameters, or only one
        distinct value.

    """
    values, source = _comparable_values(summary)
    trials = [trial for trial in summary.trials if trial.number in values]
    varied = varied_names(trials)
    if len(trials) < MIN_TRIALS or len(varied) < 2 or len(set(values.values())) < 2:
        return None
    # A study in memory with only the usable trials, since Optuna's evaluators need a whole study.
    usable = optuna.create_study()
    for trial in trials:
        # For PED-ANOVA, smaller values are better.
        value = -values[trial.number] if summary.upwards[0] else values[trial.number]
        usable.add_trial(create_trial(value=value, params=trial.params, distributions=trial.distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # experimental until Optuna 5.0, there the default
        evaluator = importance_evaluator(max(TOP, MIN_TOP / len(trials)))
    found = optuna.importance.get_param_importances(usable, evaluator=evaluator)
    # Remove parameters with the same value in all trials, to which Optuna gives a small importance.
    shares = {name: float(share) for name, share in found.items() if name in varied}
    total = sum(shares.values())
    if not total > 0:
        return None
    return Importances({name: share / total for name, share in shares.items()}, source)


def _comparable_values(summary: StudySummary) -> tuple[dict[int, float], str]:
    """A value for each trial, by its number, all from the same step; and a description of these values."""
    pruned = [trial for trial in summary.trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    complete = [trial for trial in summary.complete if math.isfinite(trial.values[0])]
    # Without pruning, final values can be compared.
    if not pruned:
        return {trial.number: trial.values[0] for trial in complete}, f"{len(complete)} trials at their end"
    trials = [trial for trial in (*complete, *pruned) if trial.intermediate_values]
    # Pruned and complete trials can be compared at the last step that all of them have reached.
    step = min(max(trial.intermediate_values) for trial in trials)

    def value_at_step(trial: FrozenTrial) -> float:
        reported = trial.intermediate_values
        # The value of that validation, or the mean over the seeds up to that step.
        if not summary.steps_are_seeds:
            return reported.get(step, math.nan)
        return math.fsum(reported[i] for i in range(step + 1)) / (step + 1)

    values = {trial.number: value_at_step(trial) for trial in trials}
    values = {number: value for number, value in values.items() if math.isfinite(value)}
    what = f"after {step + 1} seeds" if summary.steps_are_seeds else f"at validation {step + 1}"
    return values, f"{len(values)} trials ({len(pruned)} pruned) {what}, the last that all of them reached"
