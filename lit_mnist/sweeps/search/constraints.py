"""A trial's constraint values, stored where Optuna's samplers look for them, in Optuna 4 and 5.

A value is by how much the trial exceeds a bound; values of 0 or less are feasible. Optuna 5 stores named values
(`Trial.set_constraint`). Optuna 4 has one unnamed list, which a sampler's `constraints_func` returns and which
samplers read back from the trial's system attributes.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial

HAS_NAMED_CONSTRAINTS = hasattr(Trial, "set_constraint")
LIST = "constraints"
"""Optuna 4's system attribute for the values."""
NAMES = "constraint_names"
"""Our user attribute for the names of these values, in the same order."""


def set_constraint(trial: Trial, name: str, excess: float) -> None:
    """Store by how much the trial exceeds the bound on `name`; a value that is already stored stays."""
    if name in constraints_of(trial):
        return
    if HAS_NAMED_CONSTRAINTS:
        trial.set_constraint(name, excess)
        return
    values = [*constraints_of(trial).values(), excess]
    trial.set_user_attr(NAMES, [*trial.user_attrs.get(NAMES, []), name])
    trial.storage.set_trial_system_attr(trial._trial_id, LIST, values)


def constraints_of(trial: Trial | FrozenTrial) -> Mapping[str, float]:
    """The stored constraint values by name."""
    if HAS_NAMED_CONSTRAINTS:
        return dict(trial.constraints)
    if isinstance(trial, Trial):
        attributes = trial.storage.get_trial_system_attrs(trial._trial_id)
    else:
        attributes = trial.system_attrs
    return dict(zip(trial.user_attrs.get(NAMES, []), attributes.get(LIST, []), strict=True))


def sampler_options(sampler: type[BaseSampler], has_constraints: bool) -> dict[str, Any]:
    """Arguments of `sampler` that depend on Optuna's version.

    Conditional parameters are sampled independently on purpose, so the warning about it is switched off where the
    sampler can warn (GPSampler from 4.5 on). Optuna 4's samplers respect constraints only if given a function.
    """
    arguments = inspect.signature(sampler).parameters
    options: dict[str, Any] = {}
    if "warn_independent_sampling" in arguments:
        options["warn_independent_sampling"] = False
    if has_constraints and not HAS_NAMED_CONSTRAINTS and "constraints_func" in arguments:
        options["constraints_func"] = lambda trial: trial.system_attrs.get(LIST, ())
    return options
