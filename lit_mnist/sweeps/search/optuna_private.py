"""Private names of Optuna: used here and nowhere else."""

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial

from lit_mnist.sweeps.search.constraints import constraints_of, set_constraint

__all__ = [
    "constraints_of",
    "forget_cached_trials",
    "has_reported",
    "load_trial",
    "set_constraint",
    "storage_of",
    "trial_id",
]


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage that the study is kept in; Optuna has a public attribute for it on trials only."""
    return study._storage


def trial_id(trial: Trial | FrozenTrial) -> int:
    """The trial's id in its storage, which `BaseStorage` takes where `Trial` has no method."""
    return trial._trial_id


def load_trial(study: optuna.Study, number: int) -> Trial:
    """The running trial `number` of the study, which another process may have created."""
    storage = storage_of(study)
    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def has_reported(trial: Trial, step: int) -> bool:
    """True if the trial has an intermediate value for `step`."""
    return step in trial._cached_frozen_trial.intermediate_values


def forget_cached_trials(study: optuna.Study) -> None:
    """Make samplers read the trials anew: `Study` caches them per thread, and only `Study.ask` clears that."""
    study._thread_local.cached_all_trials = None
