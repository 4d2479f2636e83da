"""The YAML of a sweep's specification: every key, with its type and its default.

`SpecFile` is the content of the file; `spec.parse_spec` converts it to a `Spec` and checks combinations of keys.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from lit_mnist.sweeps.search.parameters import Parameter
from lit_mnist.sweeps.search.sources import Flags, Source
from lit_mnist.sweeps.search.strict_model import StrictModel

Direction = Literal["maximize", "minimize"]


# ---- Samplers and pruners: one model each, told apart by their key `name` ----
# Every option has its own default here, since Optuna's defaults change between versions (TPE is multivariate by
# default from 5.0 on), and a study must work the same way after an upgrade.


class _TPE(StrictModel):
    name: Literal["tpe"]
    seed: int | None = None
    n_startup_trials: int = Field(default=10, ge=0)
    n_ei_candidates: int = Field(default=24, ge=1)
    multivariate: bool = True
    # Running trials count as bad, so that parallel workers do not try the same region.
    constant_liar: bool = True


class _Random(StrictModel):
    name: Literal["random"]
    seed: int | None = None


# The order of the points depends on the seed, see `samplers`.
class _Grid(StrictModel):
    name: Literal["grid"]
    seed: int | None = None


# `samplers.make_sampler` sets further arguments to fixed values, such as the separable variant.
class _CMAES(StrictModel):
    name: Literal["cmaes"]
    seed: int | None = None
    n_startup_trials: int = Field(default=1, ge=0)
    consider_pruned_trials: bool = False
    # Keeps a minimum probability for every integer or step; otherwise CMA-ES may settle on one too early.
    with_margin: bool = True


class _GP(StrictModel):
    name: Literal["gp"]
    seed: int | None = None
    n_startup_trials: int = Field(default=10, ge=0)
    deterministic_objective: bool = False


class _QMC(StrictModel):
    name: Literal["qmc"]
    seed: int | None = None
    qmc_type: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True


class _Auto(StrictModel):
    """One of the other samplers, chosen by the space and the number of trials."""

    name: Literal["auto"]
    seed: int | None = None


class _NoPruner(StrictModel):
    name: Literal["none"]


class _Median(StrictModel):
    name: Literal["median"]
    n_startup_trials: int = Field(default=5, ge=0)
    n_warmup_steps: int = Field(default=0, ge=0)
    interval_steps: int = Field(default=1, ge=1)
    n_min_trials: int = Field(default=1, ge=1)


class _Patient(StrictModel):
    """The median pruner, which waits for `patience` validations without improvement."""

    name: Literal["patient"]
    patience: int = Field(default=3, ge=0)
    min_delta: float = Field(default=0.0, ge=0)
    n_startup_trials: int = Field(default=5, ge=0)
    n_warmup_steps: int = Field(default=0, ge=0)
    interval_steps: int = Field(default=1, ge=1)
    n_min_trials: int = Field(default=1, ge=1)


class _Wilcoxon(StrictModel):
    """Compares a trial's seeds so far with the same seeds of the best trial."""

    name: Literal["wilcoxon"]
    p_threshold: float = Field(default=0.1, gt=0, lt=1)
    # From two seeds on: with one difference the smallest p-value of the test is 1/2.
    n_startup_steps: int = Field(default=2, ge=2)


# `max_resource` is not a key, since it follows from the longest training of the space.
class _Hyperband(StrictModel):
    name: Literal["hyperband"]
    min_resource: int = Field(default=1, ge=1)
    reduction_factor: int = Field(default=3, ge=2)


def _check_metric(metric: str) -> str:
    # Hyperparameters chosen on test images would make the test accuracy optimistic.
    if metric.startswith(("test/", "best/test/")):
        raise ValueError(f"{metric}: a sweep never reads test images; take val/…")
    return metric


def _by_name(content: Any) -> Any:
    """`tpe` stands for `{name: tpe}`."""
    return {"name": content} if isinstance(content, str) else content


# ---- The keys of the file ----
KeepCheckpoints = Literal["all", "best", "none"]
Metric = Annotated[str, AfterValidator(_check_metric)]
AnySampler = Annotated[
    _TPE | _Random | _Grid | _CMAES | _GP | _QMC | _Auto, Field(discriminator="name"), BeforeValidator(_by_name)
]
AnyPruner = Annotated[
    _NoPruner | _Median | _Patient | _Hyperband | _Wilcoxon, Field(discriminator="name"), BeforeValidator(_by_name)
]


class Objective(StrictModel):
    """A metric, and which way is better."""

    metric: Metric
    direction: Direction


class Constraint(StrictModel):
    """A metric that must not go above a bound."""

    metric: Metric
    at_most: float


class SpecFile(StrictModel):
    """The keys of a specification; `docs/sweeps.md` has an example of each."""

    study: str | None = None
    """Name of the study; without it, the file's."""
    config: str
    """Packaged configuration or file, on which every trial is based."""
    flags: Flags = Field(default={})
    """Fields of `fit` that are the same in every trial, by their dotted names."""
    space: dict[str, Parameter]
    """Fields that are varied, by their dotted names."""
    metric: Metric | None = None
    direction: Direction | None = None
    objectives: list[Objective] | None = None
    """Several objectives, instead of a single `metric` and `direction`."""
    # Kept so that a study stored by version 0.1 still opens.
    goals: list[Objective] | None = None
    """The key of the objectives in version 0.1."""
    sampler: AnySampler = _TPE(name="tpe")
    pruner: AnyPruner = _NoPruner(name="none")
    trials: int | None = Field(default=None, ge=1)
    """Size of the study; by default a grid is tried as a whole."""
    hours: float | None = Field(default=None, gt=0)
    """Time after which no new trial is started, summed over all sweeps of the study."""
    constraints: list[Constraint] = Field(default=[])
    seed: int = 0
    """Seed of the sampler, and of training unless `seeds` is given."""
    seeds: list[int] | None = None
    """Seeds of training: every point is trained with each of them."""
    repeats: int | None = Field(default=None, ge=1, le=1000)
    """Number of seeds, counted from `seed`, instead of `seeds`."""
    source: Source | None = None
    points: list[dict[str, Any]] = Field(default=[])
    """Points to try first."""
    keep_checkpoints: KeepCheckpoints = "best"
    """Checkpoints that a trial keeps after its end; with `best`, a pruned trial keeps none."""
