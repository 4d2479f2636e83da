"""A study: what it is about, how many trials it is to have, and how far it is."""

import json
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.spec import Spec, parse_spec
from lit_mnist.sweeps.study.storage import open_study, study_lock, study_names

LONGEST = "longest"
"""A study's attribute: validations of its longest training."""
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


def experiment(name: str) -> str:
    """The MLflow experiment of study `name`."""
    return f"sweeps/{name}"


def take_study(storage: BaseStorage, spec: Spec, longest: int | None = None) -> optuna.Study:
    """The study of `spec`: created where it is missing, with its number of trials raised if `spec` says so.

    Args:
        storage: Where the study is kept.
        spec: The specification.
        longest: Validations of the longest training, if known; stored the first time, so that all workers agree.

    Raises:
        UsageError: the stored study is another, or has more trials than are asked for.

    """
    with study_lock(storage, spec.name):
        if spec.name not in study_names(storage):
            optuna.create_study(
                storage=storage, study_name=spec.name, directions=[goal.direction for goal in spec.objectives]
            )
        study = open_study(storage, spec.name)
        attrs = study.user_attrs
        if "stored" not in attrs:  # new, or whoever made it was killed at once
            for key, value in (("spec", spec.text), ("stored", _plain(spec.stored())), ("trials", spec.trials)):
                study.set_user_attr(key, value)
            if longest is not None:
                study.set_user_attr(LONGEST, longest)
            return study
        _check_same(spec, attrs["stored"])
        _set_trials(study, spec, attrs["trials"])
        if spec.text != attrs["spec"]:  # its limits of time and number may have changed
            study.set_user_attr("spec", spec.text)
        return study


def spec_of(study: optuna.Study) -> Spec:
    """The specification that the study has stored."""
    spec = parse_spec(study.user_attrs["spec"], study.study_name)
    return spec.with_trials(study.user_attrs["trials"])


def check_stored(storage: BaseStorage, spec: Spec) -> str:
    """How the stored study of that name agrees with `spec`, in words; empty where there is none.

    Raises:
        UsageError: it does not.

    """
    if spec.name not in study_names(storage):
        return ""
    study = open_study(storage, spec.name)
    _check_same(spec, study.user_attrs.get("stored", _plain(spec.stored())))
    trials = get_trials(study)
    if len(trials) > spec.trials:
        raise UsageError(_too_few(spec, len(trials)))
    return f"stored, {sum(t.state.is_finished() for t in trials)} of {spec.trials} trials finished"


def get_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Every trial of the study as it is now."""
    return study.get_trials(deepcopy=False)


def is_finished(study: optuna.Study) -> bool:
    """Whether the study has all its trials, and each has come to its end."""
    trials = get_trials(study)
    return len(trials) >= study.user_attrs["trials"] and all(trial.state.is_finished() for trial in trials)


def is_out_of_time(study: optuna.Study, spec: Spec) -> bool:
    """Whether no new trials are to be asked for, since the study's hours are over."""
    return spec.hours is not None and study.user_attrs.get("spent", 0.0) >= 3600 * spec.hours


def _check_same(spec: Spec, stored: dict[str, Any]) -> None:
    given = _plain(spec.stored())
    differing = [key for key in sorted({*given, *stored}) if given.get(key) != stored.get(key)]
    if not differing:
        return
    what = "; ".join(_difference(key, stored.get(key), given.get(key)) for key in differing)
    raise UsageError(
        f"the stored study {spec.name!r} is another: {what}; give the spec another `study`, or its former values"
    )


def _difference(key: str, old: Any, new: Any) -> str:
    """What differs, entry by entry where it has any."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        return "; ".join(_difference(f"{key} {name}", old.get(name), new.get(name)) for name in names)
    return f"{key} is {json.dumps(old)} there and {json.dumps(new)} here"


def _set_trials(study: optuna.Study, spec: Spec, former: int) -> None:
    if spec.trials == former:
        return
    if (there := len(get_trials(study))) > spec.trials:
        raise UsageError(_too_few(spec, there))
    study.set_user_attr("trials", spec.trials)


def _too_few(spec: Spec, there: int) -> str:
    return f"--trials {spec.trials}: study {spec.name!r} has {there} trials already; take {there} or more"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a storage."""
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return plain
