"""Optuna's samplers and pruners, made anew for each trial, with every argument stated."""

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
"""Trials up to which `auto` takes the Gaussian process, whose time grows with the cube of their number."""
AUTO_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "tpe": {"n_startup_trials": 10, "n_ei_candidates": 24, "multivariate": True, "constant_liar": True},
    "gp": {"n_startup_trials": 10, "deterministic_objective": False},
    "cmaes": {"n_startup_trials": 1, "consider_pruned_trials": False, "with_margin": True},
}
"""The defaults of the samplers that `auto` chooses from."""


def auto_sampler(spec: Spec, number: int) -> str:
    """The sampler that `auto` takes for trial `number`, by the rule of OptunaHub's AutoSampler.

    TPE where there are choices, conditional parameters or constraints; else the Gaussian process for the first 250
    trials, and then CMA-ES. With several objectives, or one parameter alone, TPE comes after the first 250.

    OptunaHub's counts the complete trials and keeps its choice in memory. Here it depends on the specification and
    the trial's number only, so that an interrupted study continues as it would have.
    """
    # The conditions under which OptunaHub's AutoSampler takes TPE from the start.
    dimensions = spec.space.dimensions()
    has_choices = any(isinstance(each.distribution, CategoricalDistribution) for each in dimensions)
    is_conditional = any(parameter.when for parameter in spec.space.parameters.values())
    if has_choices or is_conditional or spec.space.conditional() or spec.constraints or len(spec.objectives) > 3:
        return "tpe"
    if number < MAX_GP_TRIALS:
        return "gp"
    return "cmaes" if len(dimensions) > 1 and len(spec.objectives) == 1 else "tpe"


def make_sampler(spec: Spec, number: int, trials: Sequence[FrozenTrial] = ()) -> BaseSampler:
    """The sampler for trial `number`: a function of that number, the seed, and the study's earlier trials.

    Args:
        spec: The specification.
        number: The trial's number.
        trials: Those of the study so far; with `auto`, CMA-ES starts from what the Gaussian process has found.

    A study that is interrupted and resumed thereby has the trials of one that was not, and no state of a sampler
    has to be saved (Optuna issue 3255: a resumed seeded study repeats its parameters).
    """
    # Optuna's samplers hand the seed to numpy, which takes 32 bits.
    seed = keyed_seed(spec.seed, "sampler", number) % 2**32
    # For what a sampler leaves to another one, such as conditional parameters.
    rest = RandomSampler(seed)
    name, options = spec.sampler, dict(spec.sampler_options)
    if name == "auto":
        name = auto_sampler(spec, number)
        options = dict(AUTO_OPTIONS[name])
    # The points to be tried first take the first numbers.
    own_number = max(0, number - len(spec.points))
    with _without_experimental_warnings():
        if name == "random":
            return rest
        if name == "grid":
            # Optuna's GridSampler has no conditional parameters, and gives one point to two workers at times.
            return PartialFixedSampler(_grid_point(spec, number), rest)
        if name == "qmc":
            # With the study's seed, and not the trial's: all trials take elements of one sequence.
            space = {dimension.name: dimension.distribution for dimension in spec.space.dimensions()}
            return NumberedQMCSampler(own_number, space, seed=spec.seed, **options)
        if name == "tpe":
            options |= sampler_options(TPESampler, bool(spec.constraints))
            # Groups keep the parameters of one branch together, and change nothing where there are no branches.
            return TPESampler(seed=seed, group=options["multivariate"], **options)
        if name == "gp":
            options |= sampler_options(GPSampler, bool(spec.constraints))
            return GPSampler(seed=seed, independent_sampler=rest, **options)
        options |= sampler_options(CmaEsSampler, bool(spec.constraints))
        # What the Gaussian process has tried tells CMA-ES where to begin.
        found = [trial for trial in trials if trial.number < MAX_GP_TRIALS and trial.state == TrialState.COMPLETE]
        source = found if spec.sampler == "auto" and found else None
        return CmaEsSampler(seed=seed, independent_sampler=rest, x0=None, sigma0=None, use_separable_cma=False,
                            lr_adapt=False, source_trials=source, **options)  # fmt: skip


def make_pruner(spec: Spec, validations: int) -> BasePruner:
    """The pruner, for trials that report `validations` values if nothing ends them early.

    A step of the pruner is a validation, however many epochs lie between two of them.
    """
    # A pruner has no state of its own: it decides by the values that are stored in the study.
    options = dict(spec.pruner_options)
    if spec.pruner == "none":
        return NopPruner()
    if spec.pruner == "median":
        return MedianPruner(**options)
    if spec.pruner == "wilcoxon":
        with _without_experimental_warnings():
            return WilcoxonPruner(**options)
    if spec.pruner == "hyperband":
        # The brackets divide the longest training; at least `min_resource`, below which there is no bracket.
        return BracketHyperbandPruner(max_resource=max(options["min_resource"], validations), **options)
    # The patient pruner wraps a median pruner, to which the other options belong.
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
    """The grid point of trial `number`, in an order that the seed fixes; empty for a point to be tried first."""
    if number < len(spec.points):
        return {}
    first_points = [spec.space.encode(point) for point in spec.points]
    points = [point for point in spec.space.grid() if point not in first_points]
    # Not in the grid's order, in which the first half of a study would never see half of a parameter's values.
    order = torch.randperm(len(points), generator=keyed_generator(spec.seed, "grid"))
    return points[int(order[(number - len(spec.points)) % len(points)])]
