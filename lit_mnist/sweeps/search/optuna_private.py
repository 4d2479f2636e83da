"""All uses of Optuna's private names, and all code that depends on its version.

`tests/sweeps/test_optuna_contract.py` reports the attribute that an upgrade of Optuna has changed.
"""

import copy
import heapq
import inspect
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, QMCSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

if TYPE_CHECKING:
    from optuna.importance import PedAnovaImportanceEvaluator

__all__ = [
    "BracketHyperbandPruner",
    "NumberedQMCSampler",
    "constraints_of",
    "forget_cached_trials",
    "has_reported",
    "importance_evaluator",
    "limit_trials",
    "load_trial",
    "sampler_options",
    "set_constraint",
    "storage_of",
    "trial_id",
]

TRIED = ("4.4.0", "5.0.0")
"""Versions of Optuna with which this module was tested: the oldest allowed version and the newest."""

# By the presence of the name, since version numbers of pre-releases are ambiguous.
HAS_NAMED_CONSTRAINTS = hasattr(Trial, "set_constraint")
CONSTRAINTS = "constraints"
"""Optuna 4: the system attribute from which samplers read a trial's constraint values."""
CONSTRAINT_NAMES = "constraint_names"
"""Optuna 4: this project's user attribute with the names of these values, in the same order."""


def storage_of(study: optuna.Study) -> BaseStorage:
    """The study's storage; Optuna has a public attribute for it only on trials."""
    return study._storage


def trial_id(trial: Trial | FrozenTrial) -> int:
    """The trial's id in its storage, for methods of `BaseStorage`."""
    return trial._trial_id


def load_trial(study: optuna.Study, number: int) -> Trial:
    """The running trial `number` of the study, which another process may have created."""
    # Not through `study.trials`, which reads all trials.
    storage = storage_of(study)
    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def has_reported(trial: Trial, step: int) -> bool:
    """True if the trial has an intermediate value for `step`.

    This reads the trial's own copy, which `Trial.report` keeps up to date, without accessing the storage.
    """
    return step in trial._cached_frozen_trial.intermediate_values


def forget_cached_trials(study: optuna.Study) -> None:
    """Make samplers read the trials again: `Study` caches them, and only `Study.ask` clears the cache."""
    study._thread_local.cached_all_trials = None


@contextmanager
def limit_trials(
    study: optuna.Study, trials: Sequence[FrozenTrial], count: int, has_constraints: bool, best: int = 100
) -> Iterator[None]:
    """While entered, samplers use about `count` of the trials: the best, all running ones, and the newest.

    The trials are not read again. Otherwise TPE reads all trials for each group of parameters, and compares each
    candidate with all of them.

    Args:
        study: A study with a single objective.
        trials: All its trials.
        count: Number of trials that samplers use.
        has_constraints: True if trials may break a constraint.
        best: Number of the best finished trials that are always included. TPE distinguishes the 25 best from the
            others; with Hyperband, it sees the trials of one bracket only.

    """
    if len(trials) <= count:
        yield
        return
    # Ranked as in Optuna, so that TPE has the same good trials as without the limit.
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0

    def rank(trial: FrozenTrial) -> tuple[float, ...]:
        # Reading the constraints of 10,000 trials takes as long as all else here.
        violation = sum(max(0.0, excess) for excess in constraints_of(trial).values()) if has_constraints else 0.0
        # Feasible trials first, then complete trials before pruned ones, and pruned ones by their last step.
        if trial.state == TrialState.COMPLETE:
            return violation, 0, 0, sign * trial.values[0]
        if (step := trial.last_step) is None:
            return violation, 1, 1, 0
        value = trial.intermediate_values[step]
        return violation, 1, -step, math.inf if math.isnan(value) else sign * value

    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    # Running trials keep TPE's `constant_liar` from suggesting next to them again.
    chosen = {trial.number for trial in trials if trial.state == TrialState.RUNNING}
    chosen |= {trial.number for trial in heapq.nsmallest(best, finished, key=rank)}
    rest = [trial.number for trial in finished if trial.number not in chosen]
    chosen |= set(rest[-max(1, count - len(chosen)) :])
    kept = [trial for trial in trials if trial.number in chosen]  # samplers expect them sorted by number

    def get_trials(
        deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = [trial for trial in kept if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    # An instance attribute hides the method of the class until it is deleted.
    study._get_trials = get_trials  # type: ignore[method-assign]
    try:
        yield
    finally:
        del study._get_trials


def set_constraint(trial: Trial, name: str, excess: float) -> None:
    """Store by how much the trial exceeds the bound on `name`, in the form that Optuna's samplers read.

    0 or less is feasible. A value that is already stored is not changed.

    Optuna 5 stores values by name. Optuna 4 has one unnamed list, which samplers read from the trial's system
    attributes if they have a `constraints_func`, see `sampler_options`.
    """
    if name in constraints_of(trial):
        return
    if HAS_NAMED_CONSTRAINTS:
        trial.set_constraint(name, excess)
        return
    values = [*constraints_of(trial).values(), excess]
    trial.set_user_attr(CONSTRAINT_NAMES, [*trial.user_attrs.get(CONSTRAINT_NAMES, []), name])
    trial.storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, values)


def constraints_of(trial: Trial | FrozenTrial) -> Mapping[str, float]:
    """By how much the trial exceeds each bound, by the name of the metric; 0 or less is feasible."""
    if HAS_NAMED_CONSTRAINTS:
        return dict(trial.constraints)
    if isinstance(trial, Trial):
        attributes = trial.storage.get_trial_system_attrs(trial._trial_id)
    else:
        attributes = trial.system_attrs
    return dict(zip(trial.user_attrs.get(CONSTRAINT_NAMES, []), attributes.get(CONSTRAINTS, []), strict=True))


def sampler_options(sampler: type[BaseSampler], has_constraints: bool) -> dict[str, Any]:
    """Arguments of `sampler` that depend on Optuna's version.

    Conditional parameters are sampled independently on purpose, so the warning about it is disabled for samplers
    that have it (GPSampler from 4.5 on). TPESampler deprecates this option from 4.9 on, and with groups it never
    warns. Samplers of Optuna 4 respect constraints only if they have a function.
    """
    # By the arguments of the constructor, since options were added and removed in different versions.
    arguments = inspect.signature(sampler).parameters
    options: dict[str, Any] = {}
    if "warn_independent_sampling" in arguments and sampler is not TPESampler:
        options["warn_independent_sampling"] = False
    if has_constraints and not HAS_NAMED_CONSTRAINTS and "constraints_func" in arguments:
        options["constraints_func"] = lambda trial: trial.system_attrs.get(CONSTRAINTS, ())
    return options


def importance_evaluator(quantile: float) -> "PedAnovaImportanceEvaluator":
    """PED-ANOVA: how important each parameter is for being among the best `quantile` of the trials.

    Optuna 4 calls the argument `baseline_quantile`.
    """
    from optuna.importance import PedAnovaImportanceEvaluator  # imports scikit-learn, which workers do not need

    names = ("target_quantile", "baseline_quantile")
    arguments = inspect.signature(PedAnovaImportanceEvaluator).parameters
    options: dict[str, Any] = {next(name for name in names if name in arguments): quantile}
    return PedAnovaImportanceEvaluator(**options)


class NumberedQMCSampler(QMCSampler):
    """Optuna's quasi-random sequence, where trial `number` gets element `number`.

    Optuna's own sampler takes the search space from the first finished trial, so earlier trials are random, and it
    counts elements in the study, so an interrupted trial uses up one. Here both are given, so that the points do
    not depend on the number of workers or on interruptions.

    Args:
        number: Index of the element of the sequence.
        search_space: All parameters, including conditional ones; each is one coordinate of the sequence.
        qmc_type: `sobol` or `halton`.
        scramble: Whether to randomise the sequence by `seed`.
        seed: Seed of the scrambling; the same in all trials of a study.

    """

    def __init__(
        self,
        number: int,
        search_space: Mapping[str, BaseDistribution],
        *,
        qmc_type: str,
        scramble: bool,
        seed: int,
    ) -> None:
        # All parameters are in the given search space, so none is sampled independently.
        super().__init__(qmc_type=qmc_type, scramble=scramble, seed=seed, warn_independent_sampling=False)
        self._number, self._space = number, dict(search_space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole search space."""
        return dict(self._space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the trial's element of the sequence as parameters."""
        # Optuna 4 samples categorical parameters at random. As an interval from 0 to the number of choices, they
        # follow the sequence in every version.
        choices = {name: d.choices for name, d in search_space.items() if isinstance(d, CategoricalDistribution)}
        intervals = {name: FloatDistribution(0, len(choices[name])) for name in choices}
        sample = super().sample_relative(study, trial, {**search_space, **intervals})
        chosen = {name: values[min(int(sample[name]), len(values) - 1)] for name, values in choices.items()}
        return {**sample, **chosen}

    def _find_sample_id(self, study: optuna.Study, *search_space: Any) -> int:
        return self._number


class BracketHyperbandPruner(HyperbandPruner):
    """Hyperband whose brackets also determine which trials a sampler uses.

    Optuna passes samplers a study that shows only the trials of the current trial's bracket, since a value after a
    quarter of the training says little about one after all of it. This does not work here with Optuna 4.4 and 5.0:
    a pruner has no brackets before its first pruning decision, and a sweep creates a new pruner for each trial;
    and samplers read `Study._get_trials`, while only `Study.get_trials` is filtered.

    Args:
        max_resource: Number of values that a trial reports unless it ends early.
        min_resource: Minimum number of values that a trial reports.
        reduction_factor: The share of trials that is kept at each step is one over this factor.

    """

    def __init__(self, max_resource: int, min_resource: int, reduction_factor: int) -> None:
        super().__init__(min_resource=min_resource, max_resource=max_resource, reduction_factor=reduction_factor)
        self._try_initialization(None)  # type: ignore[arg-type]  # uses the study for max_resource="auto" alone

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        bracket_study = super()._create_bracket_study(study, bracket_id)

        def get_trials(
            deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
        ) -> list[FrozenTrial]:
            trials = study._get_trials(deepcopy, states, use_cache)
            return [trial for trial in trials if self._get_bracket_id(study, trial) == bracket_id]

        bracket_study._get_trials = get_trials  # type: ignore[method-assign]
        return bracket_study
