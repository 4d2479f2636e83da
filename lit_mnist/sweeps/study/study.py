"""Creates a study from its specification, compares the two later, and checks whether the study is finished."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import Spec, load_spec, parse_spec
from lit_mnist.sweeps.search.spec_file import KeepCheckpoints
from lit_mnist.sweeps.study.locks import study_lock
from lit_mnist.sweeps.study.storage import (
    CONFIRMATION,
    STORED,
    default_storage,
    open_storage,
    open_study,
    study_names,
)

KEEP_CHECKPOINTS = "keep_checkpoints"
"""Study attribute: which checkpoints trials keep, as last set by the specification or the command line."""
MAX_VALIDATIONS = "longest"
"""Study attribute: validations of the study's longest training."""
TIME_SPENT = "spent"
"""Study attribute: seconds for which `lit-mnist sweep` has run on the study, summed over machines and starts."""
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


CONFIRMS = "confirms"
"""Study attribute of a confirmation: the MLflow run of the study that it confirms."""


def experiment_name(study: str) -> str:
    """The MLflow experiment of the study, which its confirmations share."""
    return f"sweeps/{study.partition(CONFIRMATION)[0]}"


def find_spec(given: str, url: str | None = None) -> Spec:
    """Read the specification from a file, or from the stored study of this name.

    Args:
        given: Path of the file, or name of the study.
        url: Where studies are kept; None for the default.

    Raises:
        UsageError: it is neither, or something in the file is wrong.

    """
    # A file takes precedence over a study of the same name. Opening a missing journal file would create it.
    url = url or default_storage()
    if not Path(given).is_file() and ("://" in url or Path(url).exists()):
        storage = open_storage(url)
        if given in study_names(storage):
            study = open_study(storage, given)
            if STORED not in study.user_attrs:
                raise UsageError(f"study {given} was not created to the end: give its specification, a YAML file")
            return stored_spec(study)
    return load_spec(given)


def create_or_open_study(
    storage: BaseStorage,
    spec: Spec,
    max_validations: int | None = None,
    trials: int | None = None,
    keep: KeepCheckpoints | None = None,
    confirms: str | None = None,
) -> optuna.Study:
    """Return the study of `spec`, created if it is missing, and set its number of trials.

    Args:
        storage: Where the study is kept.
        spec: The specification.
        max_validations: Validations of the longest training, if known. Stored when the study is created, so that
            all workers use the same Hyperband brackets.
        trials: Size of the study; None for that of `spec`. Stored as the study's attribute `trials`.
        keep: Checkpoints that a trial keeps; None for the value in `spec`. Stored as an attribute too.
        confirms: If the new study is a confirmation, the MLflow run of the study that it confirms.

    Raises:
        UsageError: the stored study differs from `spec`, or has more than `trials` trials.

    """
    trials, keep = spec.trials if trials is None else trials, keep or spec.keep_checkpoints
    with study_lock(storage, spec.name):
        # Under the lock, so that two sweeps that start at once do not both create it.
        if spec.name not in study_names(storage):
            directions = [objective.direction for objective in spec.objectives]
            optuna.create_study(storage=storage, study_name=spec.name, directions=directions)
        study = open_study(storage, spec.name)
        stored = study.user_attrs
        # STORED is written last and shows that all attributes are there, since the process may be killed in
        # between.
        if STORED not in stored:
            attributes: dict[str, Any] = {"spec": spec.text, "trials": trials}
            attributes[KEEP_CHECKPOINTS] = keep
            if max_validations is not None:
                attributes[MAX_VALIDATIONS] = max_validations
            if confirms is not None:
                attributes[CONFIRMS] = confirms
            for name, value in (attributes | {STORED: _as_json(spec.stored())}).items():
                study.set_user_attr(name, value)
            return study
        # The study exists. Its search settings must equal those of `spec`; its limits are set to the new values.
        _check_same(spec, stored[STORED])
        _check_trials(study, trials)
        if keep != stored.get(KEEP_CHECKPOINTS):
            study.set_user_attr(KEEP_CHECKPOINTS, keep)
        if trials != stored["trials"]:
            study.set_user_attr("trials", trials)
        if spec.text != stored["spec"]:  # the limits of time and trials may differ
            study.set_user_attr("spec", spec.text)
        return study


def check_stored(storage: BaseStorage, spec: Spec, trials: int | None = None) -> str:
    """Describe the progress of the stored study of `spec` in a few words; empty if there is no such study.

    Args:
        storage: Where the study is kept.
        spec: The specification.
        trials: Size of the study; None for that of `spec`.

    Raises:
        UsageError: the stored study differs from `spec`, or has more than `trials` trials.

    """
    trials = spec.trials if trials is None else trials
    if spec.name not in study_names(storage):
        return ""
    study = open_study(storage, spec.name)
    _check_same(spec, study.user_attrs.get(STORED, _as_json(spec.stored())))
    _check_trials(study, trials)
    finished = sum(trial.state.is_finished() for trial in get_trials(study))
    return f"stored, {finished} of {trials} trials finished"


def stored_spec(study: optuna.Study) -> Spec:
    """The specification that is stored in the study, with the current number of trials and checkpoint setting."""
    spec = parse_spec(study.user_attrs["spec"], study.study_name)
    keep = study.user_attrs.get(KEEP_CHECKPOINTS, spec.keep_checkpoints)
    return replace(spec, trials=study.user_attrs["trials"], keep_checkpoints=keep)


def get_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials of the study as stored now. Do not modify them: they may be the storage's own objects."""
    return study.get_trials(deepcopy=False)


def is_finished(study: optuna.Study) -> bool:
    """True if the study has all its trials and each of them has ended."""
    trials = get_trials(study)
    return len(trials) >= study.user_attrs["trials"] and all(trial.state.is_finished() for trial in trials)


def is_out_of_time(study: optuna.Study, spec: Spec) -> bool:
    """True if the study's hours have passed, so that no new trial may start."""
    return spec.hours is not None and study.user_attrs.get(TIME_SPENT, 0.0) >= 3600 * spec.hours


def is_over(study: optuna.Study, spec: Spec) -> bool:
    """True if no trial is running and no new one may start."""
    trials = get_trials(study)
    # A running trial may belong to a dead worker, and then still has to be taken over.
    if any(trial.state == RUNNING for trial in trials):
        return False
    return len(trials) >= study.user_attrs["trials"] or is_out_of_time(study, spec)


def add_time_spent(study: optuna.Study, seconds: float) -> None:
    """Add to the time that has been spent on the study."""
    # Optuna has no atomic increment: without the lock, two sweeps could overwrite each other's sum.
    with study_lock(storage_of(study), study.study_name):
        study.set_user_attr(TIME_SPENT, study.user_attrs.get(TIME_SPENT, 0.0) + seconds)


def _check_trials(study: optuna.Study, trials: int) -> None:
    if (count := len(get_trials(study))) > trials:
        raise UsageError(
            f"--trials {trials}: study {study.study_name!r} has {count} trials already; take {count} or more"
        )


def _check_same(spec: Spec, stored: dict[str, Any]) -> None:
    """Reject a specification that would mix trials of two different searches in one study."""
    given = _as_json(spec.stored())
    names = [name for name in sorted({*given, *stored}) if given.get(name) != stored.get(name)]
    if names:
        differences = "; ".join(_difference(name, stored.get(name), given.get(name)) for name in names)
        raise UsageError(
            f"the stored study {spec.name!r} is another: {differences};"
            " give the spec another `study`, or its former values"
        )


def _difference(name: str, old: Any, new: Any) -> str:
    """Describe how two values differ; for mappings, only the entries that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        return "; ".join(_difference(f"{name} {key}", old.get(key), new.get(key)) for key in names)
    return f"{name} is {json.dumps(old)} there and {json.dumps(new)} here"


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as a storage returns them: tuples are lists, keys are strings."""
    converted: dict[str, Any] = json.loads(json.dumps(fields))
    return converted
