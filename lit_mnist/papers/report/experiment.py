"""What an experiment is, and the list of all experiments."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_mnist.errors import UsageError, nearest
from lit_mnist.papers.report.claims import Claim
from lit_mnist.papers.report.statistics import FLOOR
from lit_mnist.papers.report.trained import TrainedStage
from lit_mnist.tracking.queries.statistics import Summary
from lit_mnist.training.stages import Preset, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By name, so that `experiments` can import them without a circle.
PAPERS = ("zhang", "dutta", "narayanam", "panagakis", "yaramsetty", "findings")
"""Modules of `lit_mnist.papers`, in the order in which they are listed and run; the last one is our own."""

Runs = Mapping[str, TrainedStage]
"""The finished stages of one seed, by their names in the experiment."""
Summaries = Mapping[str, Summary]
"""Mean and interval over the seeds, by number."""


@dataclass(frozen=True)
class Experiment:
    """One experiment of a paper: what is trained and measured with each seed, and what the paper claims."""

    id: str
    """Paper and name, such as `zhang/cnn`."""
    title: str
    stages: Mapping[str, Stage]
    """What is trained, by name; a stage comes after the stage it builds on."""
    measure: Callable[[Runs], dict[str, float]]
    """Measures the numbers of one seed."""
    claims: tuple[Claim, ...]
    draw: Callable[[Sequence[Runs], Summaries], Mapping[str, "Figure"]]
    """Draws the paper's figures by name, from the runs of all seeds. The first one is shown in docs/results.md."""
    cut: str
    """What the quick preset shortens; empty if nothing. What is shortened is not judged."""
    minutes: Mapping[Preset, float]
    """Approximate duration of three seeds on two cores."""
    finding: str = ""
    """What we found beyond the paper: a template filled with the means over the seeds."""
    fewest_seeds: int = FLOOR
    """With fewer seeds there is no verdict; 3 where a training takes hours."""

    @property
    def paper(self) -> str:
        """Name of the paper's module."""
        return self.id.partition("/")[0]

    @property
    def name(self) -> str:
        """The experiment's name within its paper."""
        return self.id.partition("/")[2]


def experiments() -> list[Experiment]:
    """The experiments of every paper."""
    # Imported here, since the papers' modules import this one. The commands that need no experiment stay fast.
    modules = [importlib.import_module(f"lit_mnist.papers.{paper}") for paper in PAPERS]
    return [experiment for module in modules for experiment in module.EXPERIMENTS]


def select(names: Sequence[str]) -> list[Experiment]:
    """The experiments that `names` refer to: papers (`zhang`) or experiments (`zhang/cnn`), without duplicates.

    Raises:
        UsageError: a name refers to nothing.

    """
    # A paper's name selects all of its experiments; naming one twice does not run it twice.
    every = experiments()
    # In the order of the command line, a paper's experiments in the order of its file.
    selected: list[Experiment] = []
    for name in names:
        found = [experiment for experiment in every if name.rstrip("/") in (experiment.id, experiment.paper)]
        if not found:
            known = [*PAPERS, *(experiment.id for experiment in every)]
            raise UsageError(f"there is no experiment {name}{nearest(name, known, listed=True)}")
        selected += [experiment for experiment in found if experiment not in selected]
    return selected
