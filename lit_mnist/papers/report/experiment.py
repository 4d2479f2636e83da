"""The class of experiments, and the list of all experiments."""

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

# Names instead of modules, so that there is no import cycle.
PAPERS = ("zhang", "dutta", "narayanam", "panagakis", "yaramsetty", "findings")
"""Modules of `lit_mnist.papers`, in the order of listing and running; the last one is this project's own."""

Runs = Mapping[str, TrainedStage]
"""The finished stages of one seed, by their names in the experiment."""
Summaries = Mapping[str, Summary]
"""Mean and interval over the seeds, by number."""


@dataclass(frozen=True)
class Experiment:
    """One experiment of a paper: the trainings and measurements for each seed, and the paper's claims."""

    id: str
    """Paper and name, such as `zhang/cnn`."""
    title: str
    stages: Mapping[str, Stage]
    """The trainings by name; each stage comes after the stage it builds on."""
    measure: Callable[[Runs], dict[str, float]]
    """Measures the numbers of one seed."""
    claims: tuple[Claim, ...]
    draw: Callable[[Sequence[Runs], Summaries], Mapping[str, "Figure"]]
    """Draws the paper's figures by name, from the runs of all seeds. The first one is shown in docs/results.md."""
    cut: str
    """Description of what the quick preset shortens; empty if nothing. Shortened trainings have no verdict."""
    minutes: Mapping[Preset, float]
    """Approximate duration of three seeds on two cores."""
    finding: str = ""
    """Results beyond the paper, as a template that is filled with the means over the seeds."""
    fewest_seeds: int = FLOOR
    """Minimum number of seeds for a verdict; 3 if a training takes hours."""

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
    # Imported here, since the papers' modules import this one, and other commands should stay fast.
    modules = [importlib.import_module(f"lit_mnist.papers.{paper}") for paper in PAPERS]
    return [experiment for module in modules for experiment in module.EXPERIMENTS]


def select(names: Sequence[str]) -> list[Experiment]:
    """The experiments that `names` refer to: papers (`zhang`) or experiments (`zhang/cnn`), without duplicates.

    Raises:
        UsageError: a name refers to nothing.

    """
    every = experiments()
    # In the order of the command line; a paper's name selects all of its experiments, in the order of its file.
    selected: list[Experiment] = []
    for name in names:
        found = [experiment for experiment in every if name.rstrip("/") in (experiment.id, experiment.paper)]
        if not found:
            known = [*PAPERS, *(experiment.id for experiment in every)]
            hint = nearest(name, known) or "; `lit-mnist reproduce` lists them"
            raise UsageError(f"there is no experiment {name!r}{hint}")
        selected += [experiment for experiment in found if experiment not in selected]
    return selected
