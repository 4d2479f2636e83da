"""What an experiment is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_mnist.papers.report.claims import Claim
from lit_mnist.papers.report.trained import Trained
from lit_mnist.tracking.queries.statistics import Summary
from lit_mnist.training.stages import Preset, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Trained]
"""The finished stages of one seed, by their names in the experiment."""
Summaries = Mapping[str, Summary]


@dataclass(frozen=True)
class Experiment:
    """One row of a paper: what is trained and measured with each seed, and what the paper says of it."""

    id: str
    """Paper and name, such as `zhang/cnn`."""
    title: str
    stages: Mapping[str, Stage]
    measure: Callable[[Runs], dict[str, float]]
    """The numbers of one seed."""
    claims: tuple[Claim, ...]
    draw: Callable[[Sequence[Runs], Summaries], Mapping[str, "Figure"]]
    """The paper's figures by name, from the runs of all seeds; the first stands for the experiment."""
    cut: str
    """What the quick preset leaves out."""
    minutes: Mapping[Preset, float]
    """About how long three seeds take on two cores."""
    finding: str = ""
    """What the paper did not see."""

    @property
    def paper(self) -> str:
        """Name of the paper's file."""
        return self.id.partition("/")[0]

    @property
    def name(self) -> str:
        """The experiment's name within its paper."""
        return self.id.partition("/")[2]
