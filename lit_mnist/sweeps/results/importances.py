"""How much each parameter matters for the first objective, pruned trials included."""

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
"""Trials from which importances are estimated: with fewer, chance decides their order."""
TOP = 1 / 3
"""The share of the trials that count as good. With Optuna's default of a tenth, 3 of 30 trials would decide, and a
parameter by which half of the trials fail would have less than one that matters among the best only."""
MIN_TOP = 5
"""Trials that count as good at least, as Optuna's documentation recommends."""


@dataclass(frozen=True)
class Importances:
    """The shares of the parameters, and what they were estimated from."""

    shares: Mapping[str, float]
    """By parameter, largest first; they add up to 1. Parameters that never varied have none."""
    source: str
    """The trials and values, in words: "24 trials at their end"."""


def estimate_importances(summary: StudySummary) -> Importances | None:
    """Estimate by PED-ANOVA what distinguishes the best third of the trials from all.

    Where trials were pruned, all are compared at the last step that each of them reached: the final values alone
    would leave out what was bad enough to be pruned, and so the parameters that matter most.

    Returns:
        None if there are fewer than ten usable trials, fewer than two parameters that varied, or only one distinct
        value.

    """
    values, source = _comparable_values(summary)
    trials = [trial for trial in summary.trials if trial.number in values]
    varied = varied_names(trials)
    if len(trials) < MIN_TRIALS or len(varied) < 2 or len(set(values.values())) < 2:
        return None
    # A study in memory with the usable trials alone: Optuna's evaluators take a whole study.
    usable = optuna.create_study()
    for trial in trials:
        # PED-ANOVA looks at the smallest values.
        value = -values[trial.number] if summary.upwards[0] else values[trial.number]
        usable.add_trial(create_trial(value=value, params=trial.params, distributions=trial.distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # experimental until Optuna 5.0, there the default
        evaluator = importance_evaluator(max(TOP, MIN_TOP / len(trials)))
    found = optuna.importance.get_param_importances(usable, evaluator=evaluator)
    # Optuna gives a small share to parameters that had the same value in every trial.
    shares = {name: float(share) for name, share in found.items() if name in varied}
    total = sum(shares.values())
    if not total > 0:
        return None
    return Importances({name: share / total for name, share in shares.items()}, source)


def _comparable_values(summary: StudySummary) -> tuple[dict[int, float], str]:
    """A value for each trial, by its number, all from the same step; and which these are, in words."""
    pruned = [trial for trial in summary.trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    complete = [trial for trial in summary.complete if math.isfinite(trial.values[0])]
    # Without pruning every trial has come to its end, where all can be compared.
    if not pruned:
        return {trial.number: trial.values[0] for trial in complete}, f"{len(complete)} trials at their end"
    trials = [trial for trial in (*complete, *pruned) if trial.intermediate_values]
    # The last step that every trial has reached: only there can pruned and complete ones be compared.
    step = min(max(trial.intermediate_values) for trial in trials)

    def value_at_step(trial: FrozenTrial) -> float:
        reported = trial.intermediate_values
        # The value of that validation, or the mean over the seeds up to that one.
        if not summary.steps_are_seeds:
            return reported.get(step, math.nan)
        return math.fsum(reported[i] for i in range(step + 1)) / (step + 1)

    values = {trial.number: value_at_step(trial) for trial in trials}
    values = {number: value for number, value in values.items() if math.isfinite(value)}
    what = f"after {step + 1} seeds" if summary.steps_are_seeds else f"at validation {step + 1}"
    return values, f"{len(values)} trials ({len(pruned)} pruned) {what}, the last that all of them reached"
