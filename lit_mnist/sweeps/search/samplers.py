"""Optuna's samplers and pruners, made anew for each trial, with every argument stated."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, PatientPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)

from lit_mnist.data.randomness import keyed_generator, keyed_seed
from lit_mnist.sweeps.search.optuna_private import BracketHyperbandPruner, NumberedQMCSampler, sampler_options
from lit_mnist.sweeps.search.spec import Spec


def make_sampler(spec: Spec, number: int) -> BaseSampler:
    """The sampler for trial `number`: a function of that number, the seed, and the study's earlier trials.

    A study that is interrupted and resumed thereby has the trials of one that was not, and no state of a sampler
    has to be saved (Optuna issue 3255: a resumed seeded study repeats its parameters).
    """
    seed = keyed_seed(spec.seed, "sampler", number) % 2**32
    rest = RandomSampler(seed)
    options: dict[str, Any] = dict(spec.sampler_options)
    # The points to be tried first take the first numbers.
    own_number = max(0, number - len(spec.points))
    with _without_experimental_warnings():
        if spec.sampler == "random":
            return rest
        if spec.sampler == "grid":
            # Optuna's GridSampler has no conditional parameters, and gives one point to two workers at times.
            return PartialFixedSampler(_grid_point(spec, number), rest)
        if spec.sampler == "qmc":
            space = {dimension.name: dimension.distribution for dimension in spec.space.dimensions()}
            return NumberedQMCSampler(own_number, space, seed=spec.seed, **options)
        if spec.sampler == "tpe":
            options |= sampler_options(TPESampler, bool(spec.constraints))
            # Groups keep the parameters of one branch together, and change nothing where there are no branches.
            return TPESampler(seed=seed, group=options["multivariate"], **options)
        if spec.sampler == "gp":
            options |= sampler_options(GPSampler, bool(spec.constraints))
            return GPSampler(seed=seed, independent_sampler=rest, **options)
        options |= sampler_options(CmaEsSampler, bool(spec.constraints))
        return CmaEsSampler(seed=seed, independent_sampler=rest, x0=None, sigma0=None, use_separable_cma=False,
                            lr_adapt=False, source_trials=None, **options)  # fmt: skip


def make_pruner(spec: Spec, validations: int) -> BasePruner:
    """The pruner, for trials that report `validations` values if nothing ends them early.

    A step of the pruner is a validation, however many epochs lie between two of them.
    """
    options = dict(spec.pruner_options)
    if spec.pruner == "none":
        return NopPruner()
    if spec.pruner == "median":
        return MedianPruner(**options)
    if spec.pruner == "hyperband":
        return BracketHyperbandPruner(max_resource=max(options["min_resource"], validations), **options)
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
    order = torch.randperm(len(points), generator=keyed_generator(spec.seed, "grid"))
    return points[int(order[(number - len(spec.points)) % len(points)])]
