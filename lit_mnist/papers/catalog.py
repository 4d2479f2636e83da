"""All experiments, in the order in which they are listed and run."""

import importlib
from collections.abc import Sequence

from lit_mnist.errors import UsageError, nearest
from lit_mnist.papers.report.experiment import Experiment

PAPERS = ("zhang", "dutta", "narayanam", "panagakis", "yaramsetty")


def experiments() -> list[Experiment]:
    """Those of every paper."""
    modules = [importlib.import_module(f"lit_mnist.papers.{paper}") for paper in PAPERS]
    return [experiment for module in modules for experiment in module.EXPERIMENTS]


def select(names: Sequence[str]) -> list[Experiment]:
    """The experiments that `names` mean: papers, or experiments such as `zhang/cnn`; each once.

    Raises:
        UsageError: there is none of that name.

    """
    every = experiments()
    wanted: list[Experiment] = []
    for name in names:
        found = [experiment for experiment in every if name.rstrip("/") in (experiment.id, experiment.paper)]
        if not found:
            known = [*PAPERS, *(experiment.id for experiment in every)]
            raise UsageError(f"there is no experiment {name}{nearest(name, known, listed=True)}")
        wanted += [experiment for experiment in found if experiment not in wanted]
    return wanted
