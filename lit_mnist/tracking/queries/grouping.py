"""Group the runs that differ only in their seed."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lit_mnist.tracking.queries.metrics import higher_is_better
from lit_mnist.tracking.queries.reader import GOAL, GOALS, SEED, STUDY, TRIAL, Reader, RunData
from lit_mnist.tracking.queries.statistics import Summary, summarise

RUN_SEED, DATA_SEED = "seed_everything", "seed"
"""Parameters with the seed of the run, and with that of the data's split and order, usually the same."""
IRRELEVANT_PARAMS = ("root",)
"""Parameters that do not affect the training."""
CHECKPOINT = re.compile(r".*([0-9a-f]{32}).*\.ckpt")
"""Matches the path of a run's checkpoint; the group is the run's id, the last one in the path."""


@dataclass(frozen=True)
class Group:
    """One or more runs that differ only in their seed."""

    label: str
    runs: Sequence[RunData]

    @property
    def goal(self) -> str:
        """The objective of these runs' study, such as `minimize val/loss`; empty without a study."""
        return next((run.tags[GOAL] for run in self.runs if GOAL in run.tags), "")

    @property
    def objectives(self) -> list[str]:
        """The metrics that the study optimizes; empty without a study."""
        return [goal.partition(" ")[2] for goal in self._goals()]

    def goal_of(self, metric: str) -> str:
        """Return the study's objective with this metric, such as `minimize parameters`; otherwise `goal`."""
        return next((goal for goal in self._goals() if goal.endswith(f" {metric}")), self.goal)

    def _goals(self) -> list[str]:
        tags = self.runs[0].tags
        return tags[GOALS].split(", ") if GOALS in tags else [self.goal] if self.goal else []

    def by_seed(self, metric: str) -> dict[str, float]:
        """Return the metric's last value for each seed that has one."""
        return {seed_of(run): run.metrics[metric] for run in self.runs if metric in run.metrics}

    def summary(self, metric: str) -> Summary | None:
        """Return the metric's mean over the seeds; None if no run has the metric."""
        values = list(self.by_seed(metric).values())
        return summarise(values) if values else None


def seed_of(run: RunData) -> str:
    """Return the seed of a run; "–" if it has none."""
    return run.tags.get(SEED) or run.params.get(RUN_SEED, "–")


def group_runs(runs: Sequence[RunData], reader: Reader) -> list[Group]:
    """Group runs by everything but their seed, in the order of each group's first run.

    Two runs with the same seed and the same parameters are repetitions and go to different groups, since they
    would count twice in a mean over seeds.

    Args:
        runs: The runs.
        reader: The reader of their store, for reading the runs whose checkpoints they start from.

    """
    # If each run starts from an encoder that was trained with its own seed, the paths of the checkpoints differ.
    # So the parameters of the encoders' runs are compared instead, which may start from other checkpoints in turn.
    sources: dict[str, RunData] = {}
    wanted = _source_ids(runs)
    while new := reader.runs(sorted(wanted - sources.keys())):
        sources |= {run.id: run for run in new}
        wanted = _source_ids(new)

    # Counts the runs with the same parameters and seed: the nth of them goes to the nth group.
    repetitions: Counter[tuple[str, str]] = Counter()
    members: dict[tuple[str, int], list[RunData]] = {}
    for run in runs:
        key, seed = _identity(run, sources), seed_of(run)
        members.setdefault((key, repetitions[key, seed]), []).append(run)
        repetitions[key, seed] += 1

    one_study = len({run.tags.get(STUDY) for run in runs}) == 1
    groups = []
    for same in members.values():
        tags, label = same[0].tags, same[0].id[:8]
        if TRIAL in tags:
            # Trials of several studies are distinguished by the study's name.
            label = f"trial {tags[TRIAL]}" if one_study else f"{tags.get(STUDY)} trial {tags[TRIAL]}"
        groups.append(Group(label, same))
    return groups


def best(groups: Sequence[Group], metric: str) -> float | None:
    """Return the best mean of the metric; None if its better direction is unknown, or all groups are equal."""
    means = [summary.mean for group in groups if (summary := group.summary(metric)) is not None]
    means = [mean for mean in means if mean == mean]  # without NaN
    upwards = higher_is_better(metric, groups[0].goal_of(metric))
    if upwards is None or len(set(means)) < 2:
        return None
    return max(means) if upwards else min(means)


def _source_ids(runs: Iterable[RunData]) -> set[str]:
    """Return the ids of the runs whose checkpoints are among the parameters of `runs`."""
    return {match[1] for run in runs for value in run.params.values() if (match := CHECKPOINT.fullmatch(value))}


def _identity(run: RunData, sources: Mapping[str, RunData]) -> str:
    """Return a text that is the same for two runs if they differ only in their seed."""
    # Trials are different even if their sampler gave them the same parameters.
    if TRIAL in run.tags and SEED in run.tags:
        return f"{run.tags.get(STUDY)} {run.tags[TRIAL]}"
    # The remaining parameters describe the training: model, data, Trainer.
    params = {name: value for name, value in run.params.items() if name not in (RUN_SEED, *IRRELEVANT_PARAMS)}
    # The data's seed counts only if it was set to a value other than the run's seed.
    if params.get(DATA_SEED) == run.params.get(RUN_SEED):
        params.pop(DATA_SEED, None)
    for name, value in params.items():
        match = CHECKPOINT.fullmatch(value)
        if match is not None and match[1] in sources:
            params[name] = _identity(sources[match[1]], sources)
    return repr(sorted(params.items()))
