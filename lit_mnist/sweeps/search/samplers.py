"""Optuna's samplers and pruners, created for each trial with all arguments given explicitly."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, PatientPruner, WilcoxonPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from lit_mnist.data.randomness import keyed_generator, keyed_seed
from lit_mnist.sweeps.search.optuna_private import BracketHyperbandPruner, NumberedQMCSampler, sampler_options
from lit_mnist.sweeps.search.spec import Spec

MAX_GP_TRIALS = 250
"""Number of trials for which `auto` uses the Gaussian process, whose time grows with the cube of their number."""
AUTO_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "tpe": {"n_startup_trials": 10, "n_ei_candidates": 24, "multivariate": True, "constant_liar": True},
    "gp": {"n_startup_trials": 10, "deterministic_objective": False},
    "cmaes": {"n_startup_trials": 1, "consider_pruned_trials": False, "with_margin": True},
}
"""The defaults of the samplers that `auto` chooses from."""


def auto_sampler(spec: Spec, number: int) -> str:
    """The sampler that `auto` uses for trial `number`, by the rule of OptunaHub's AutoSampler.

    It is TPE if there are choices, conditional parameters or constraints; otherwise the Gaussian process for the
    first 250 trials, and then CMA-ES. With several objectives or a single parameter, TPE follows the Gaussian
    process.

    AutoSampler itself counts complete trials and keeps its choice in memory. Here the choice depends only on the
    specification and the trial's number, so that an interrupted study continues in the same way.
    """
    # The conditions under which AutoSampler uses TPE from the start.
    dimensions = spec.space.dimensions()
    has_choices = any(isinstance(each.distribution, CategoricalDistribution) for each in dimensions)
    is_conditional = any(parameter.when for parameter in spec.space.parameters.values())
    if has_choices or is_conditional or spec.space.conditional() or spec.constraints or len(spec.objectives) > 3:
        return "tpe"
    if number < MAX_GP_TRIALS:
        return "gp"
    return "cmaes" if len(dimensions) > 1 and len(spec.objectives) == 1 else "tpe"


def make_sampler(spec: Spec, number: int, trials: Sequence[FrozenTrial] = ()) -> BaseSampler:
    """The sampler for trial `number`, as a function of that number, the seed, and the study's earlier trials.

    So a study that is interrupted and resumed has the same trials as an uninterrupted one, and no sampler state
    has to be saved (Optuna issue 3255: a resumed seeded study repeats its parameters).

    Args:
        spec: The specification.
        number: The trial's number.
        trials: The study's trials so far; with `auto`, CMA-ES starts from those of the Gaussian process.

    """
    # Optuna's samplers pass the seed to numpy, which accepts 32 bits.
    seed = keyed_seed(spec.seed, "sampler", number) % 2**32
    # For parameters that a sampler does not handle itself, such as conditional ones.
    rest = RandomSampler(seed)
    name, options = spec.sampler, dict(spec.sampler_options)
    if name == "auto":
        name = auto_sampler(spec, number)
        options = dict(AUTO_OPTIONS[name])
    # The first numbers belong to the given points.
    own_number = max(0, number - len(spec.points))
    with _without_experimental_warnings():
        if name == "random":
            return rest
        if name == "grid":
            # Optuna's GridSampler does not support conditional parameters, and may give two workers the same
            # point.
            return PartialFixedSampler(_grid_point(spec, number), rest)
        if name == "qmc":
            # With the study's seed instead of the trial's, since all trials use the same sequence.
            space = {dimension.name: dimension.distribution for dimension in spec.space.dimensions()}
            return NumberedQMCSampler(own_number, space, seed=spec.seed, **options)
        if name == "tpe":
            options |= sampler_options(TPESampler, bool(spec.constraints))
            # Groups sample the parameters of a branch together; without branches they have no effect.
            return TPESampler(seed=seed, group=options["multivariate"], **options)
        if name == "gp":
            options |= sampler_options(GPSampler, bool(spec.constraints))
            return GPSampler(seed=seed, independent_sampler=rest, **options)
        options |= sampler_options(CmaEsSampler, bool(spec.constraints))
        # CMA-ES starts from the trials of the Gaussian process.
        found = [trial for trial in trials if trial.number < MAX_GP_TRIALS and trial.state == TrialState.COMPLETE]
        source = found if spec.sampler == "auto" and found else None
        return CmaEsSampler(seed=seed, independent_sampler=rest, x0=None, sigma0=None, use_separable_cma=False,
                            lr_adapt=False, source_trials=source, **options)  # fmt: skip


def make_pruner(spec: Spec, validations: int) -> BasePruner:
    """The pruner, for trials that report `validations` values unless they end early.

    A step of the pruner is a validation, however many epochs there are between validations.
    """
    # A new pruner for each trial works, since pruners decide by the values stored in the study.
    options = dict(spec.pruner_options)
    if spec.pruner == "none":
        return NopPruner()
    if spec.pruner == "median":
        return MedianPruner(**options)
    if spec.pruner == "wilcoxon":
        with _without_experimental_warnings():
            return WilcoxonPruner(**options)
    if spec.pruner == "hyperband":
        # The brackets divide the longest training, which must be at least `min_resource` long for one bracket.
        return BracketHyperbandPruner(max_resource=max(options["min_resource"], validations), **options)
    # The patient pruner wraps a median pruner, which gets the other options.
    patience = {name: options.pop(name) for name in ("patience", "min_delta")}
    with _without_experimental_warnings():
        return PatientPruner(MedianPruner(**options), **patience)


@contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    """Suppress Optuna's warning that a class is experimental, which users cannot do anything about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _grid_point(spec: Spec, number: int) -> dict[str, Any]:
    """The grid point of trial `number`, in an order that depends on the seed; empty for a given point."""
    if number < len(spec.points):
        return {}
    first_points = [spec.space.encode(point) for point in spec.points]
    points = [point for point in spec.space.grid() if point not in first_points]
    # In random order: in the grid's own order, the first half of a study would miss half of a parameter's values.
    order = torch.randperm(len(points), generator=keyed_generator(spec.seed, "grid"))
    return points[int(order[(number - len(spec.points)) % len(points)])]
