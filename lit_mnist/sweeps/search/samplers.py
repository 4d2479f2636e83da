"""Optuna's samplers and pruners, every argument stated, and two of our own that go by the trial's number."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from lit_mnist.data.randomness import keyed_generator, keyed_seed
from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.constraints import sampler_options

if TYPE_CHECKING:
    from lit_mnist.sweeps.search.spec import Spec

SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {
        "n_startup_trials": 10,
        "n_ei_candidates": 24,
        "multivariate": True,
        "constant_liar": True,
    },
    "random": {},
    "grid": {},
    "cmaes": {"n_startup_trials": 1, "consider_pruned_trials": False, "with_margin": True},
    "gp": {"n_startup_trials": 10, "deterministic_objective": False},
    "qmc": {"qmc_type": "sobol", "scramble": True},
}
"""Options by name, with our defaults."""
_MEDIAN = {"n_startup_trials": 5, "n_warmup_steps": 0, "interval_steps": 1, "n_min_trials": 1}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    "median": _MEDIAN,
    "hyperband": {"min_resource": 1, "reduction_factor": 3},
    "patient": {"patience": 3, "min_delta": 0.0, **_MEDIAN},
}
"""Options by name, with our defaults; `patient` is `median` that waits."""


def make_sampler(spec: "Spec", number: int) -> BaseSampler:
    """The sampler for trial `number`, which knows nothing but that number, the seed and the study's past.

    A study that is gone on with is thereby the one that was never interrupted.
    """
    seed = keyed_seed(spec.seed, "sampler", number) % 2**32
    options = dict(spec.sampler_options)
    own = number - len(spec.points)  # those to be tried first take the first numbers
    if spec.sampler == "random":
        return RandomSampler(seed)
    if spec.sampler == "grid":
        return Listed(_grid_point(spec, own), seed)
    if spec.sampler == "qmc":
        return Listed(_sequence_point(spec, own), seed)
    if spec.sampler == "tpe":
        # Groups keep the parameters of one branch together, and change nothing where there are no branches.
        with _experimental():
            extra = sampler_options(TPESampler, bool(spec.constraints))
            extra.pop("warn_independent_sampling", None)  # warns only outside of groups
            return TPESampler(seed=seed, group=options["multivariate"], **extra, **options)
    shared: dict[str, Any] = {"seed": seed, "independent_sampler": RandomSampler(seed)}
    if spec.sampler == "gp":
        with _experimental():
            return GPSampler(**shared, **sampler_options(GPSampler, bool(spec.constraints)), **options)
    shared |= sampler_options(CmaEsSampler, bool(spec.constraints))
    with _experimental():
        return CmaEsSampler(x0=None, sigma0=None, use_separable_cma=False, lr_adapt=False, source_trials=None,
                            **shared, **options)  # fmt: skip


def make_pruner(spec: "Spec", validations: int) -> optuna.pruners.BasePruner:
    """The pruner, for trials that report at most so many validations.

    Hyperband's brackets are for pruning alone: samplers learn from the trials of all brackets. Optuna's own loop
    does the same. It hands samplers a study that filters `get_trials`, but they call `_get_trials` (5.0).
    """
    options = dict(spec.pruner_options)
    if spec.pruner == "none":
        return optuna.pruners.NopPruner()
    if spec.pruner == "median":
        return optuna.pruners.MedianPruner(**options)
    if spec.pruner == "hyperband":
        most = max(options["min_resource"], validations)
        return optuna.pruners.HyperbandPruner(max_resource=most, bootstrap_count=0, **options)
    patience = {name: options.pop(name) for name in ("patience", "min_delta")}
    with _experimental():
        return optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(**options), **patience)


@contextmanager
def _experimental() -> Iterator[None]:
    """Take what Optuna calls experimental without its warning, which nobody who starts a sweep can heed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def check_search(spec: "Spec") -> None:
    """Refuse what Optuna would only stumble on in the middle of a study.

    Raises:
        UsageError: names the key.

    """
    if spec.trials < 1:
        raise UsageError(f"trials: {spec.trials} must be at least 1")
    if spec.hours is not None and spec.hours <= 0:
        raise UsageError(f"hours: {spec.hours:g} must be above 0")
    firsts = [spec.space.encode(point) for point in spec.points]
    _check_sampler(spec, firsts)
    _check_pruner(spec)
    try:
        make_sampler(spec, 0)
        make_pruner(spec, 1)
    except ValueError as error:
        raise UsageError(f"sampler or pruner: {' '.join(str(error).split())}") from None


def _check_sampler(spec: "Spec", firsts: Sequence[Mapping[str, Any]]) -> None:
    intervals = [d for d in spec.space.dimensions() if not isinstance(d.distribution, CategoricalDistribution)]
    if spec.sampler == "cmaes":
        if len(intervals) < 2:
            raise UsageError(
                f"sampler: cmaes needs two or more intervals, and space has {len(intervals)}: take tpe"
            )
        if coming_and_going := spec.space.conditional():
            raise UsageError(
                f"sampler: cmaes needs intervals that always apply, unlike {coming_and_going[0]}: take tpe"
            )
        if len(spec.objectives) > 1:
            raise UsageError(f"sampler: cmaes cannot look for {len(spec.objectives)} objectives: take tpe")
    if spec.sampler != "grid":
        for name, content in spec.fields.get("space", {}).items():
            if any("points" in part for part in (content, *content.values()) if isinstance(part, dict)):
                raise UsageError(f"space: {name}: points has no effect on the sampler {spec.sampler}")
        return
    grid = spec.space.grid()
    size = len(grid) + sum(point not in grid for point in firsts)
    if spec.trials > size:
        raise UsageError(f"trials: {spec.trials}, but the grid has {size} points")


def _check_pruner(spec: "Spec") -> None:
    if spec.pruner == "none":
        return
    if len(spec.objectives) > 1:
        raise UsageError(
            f"pruner: {spec.pruner} needs a single objective, and there are {len(spec.objectives)}: take none"
        )
    if not (metric := spec.objectives[0].metric).startswith("val/"):
        raise UsageError(f"pruner: {spec.pruner} needs a metric of every validation, val/…, and not {metric}")


class Listed(BaseSampler):
    """Gives the values of one point; random ones for what the point leaves open."""

    def __init__(self, point: Mapping[str, Any], seed: int) -> None:
        self.point, self.rest = point, RandomSampler(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each parameter has its value already."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The point's value."""
        if param_name in self.point:
            return self.point[param_name]
        return self.rest.sample_independent(study, trial, param_name, param_distribution)


def _grid_point(spec: "Spec", number: int) -> Mapping[str, Any]:
    """The point of the grid that is tried as the `number`th, in an order that the seed fixes."""
    if number < 0:
        return {}
    firsts = [spec.space.encode(point) for point in spec.points]
    points = [point for point in spec.space.grid() if point not in firsts]
    order = torch.randperm(len(points), generator=keyed_generator(spec.seed, "grid"))
    return points[int(order[number % len(points)])]


def _sequence_point(spec: "Spec", number: int) -> Mapping[str, Any]:
    """The `number`th point of a sequence that fills the space evenly."""
    from scipy.stats import qmc

    dimensions, options = spec.space.dimensions(), spec.sampler_options
    kind = {"sobol": qmc.Sobol, "halton": qmc.Halton}.get(options["qmc_type"])
    if kind is None:
        raise UsageError(f"sampler: qmc_type {options['qmc_type']} is neither sobol nor halton")
    engine = kind(len(dimensions), scramble=options["scramble"], seed=spec.seed)
    if number > 0:
        engine.fast_forward(number)
    shares = engine.random(1)[0]
    return {d.name: at_share(d.distribution, float(share)) for d, share in zip(dimensions, shares, strict=True)}


def at_share(distribution: BaseDistribution, share: float) -> Any:
    """The value of which `share`, in [0, 1), of the distribution lies below."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        low, high = (low, high) if isinstance(distribution, FloatDistribution) else (low, high + 1)
        value = low * (high / low) ** share
        return value if isinstance(distribution, FloatDistribution) else int(value)
    if step is None:
        return low + (high - low) * share
    value = low + step * int(share * (round((high - low) / step) + 1))
    return value if isinstance(distribution, FloatDistribution) else round(value)
