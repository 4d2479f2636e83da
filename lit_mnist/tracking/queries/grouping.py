"""Runs that differ only in their seed, taken together."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_mnist.tracking.queries.reader import SEED, STUDY, TRIAL, Reader, RunData
from lit_mnist.tracking.queries.statistics import Summary, paired, summarise

RUN_SEED, DATA_SEED = "seed_everything", "seed"
NO_MATTER = ("root",)
"""Parameters that change nothing in what is learnt."""
UPWARDS, DOWNWARDS = ("acc",), ("loss", "mse", "error")
RUN_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed; often just one."""

    label: str
    runs: Sequence[RunData]

    @property
    def seeds(self) -> list[str]:
        """Those of its runs."""
        return [seed_of(run) for run in self.runs]

    def param(self, name: str) -> str | None:
        """The parameter's value; None where the runs have none of that name."""
        return self.runs[0].params.get(name)

    def by_seed(self, metric: str) -> dict[str, float]:
        """The metric's last value for each seed that has one."""
        return {seed_of(run): run.metrics[metric] for run in self.runs if metric in run.metrics}

    def summary(self, metric: str) -> Summary | None:
        """Its mean over the seeds; None where no run has it."""
        values = list(self.by_seed(metric).values())
        return summarise(values) if values else None


def seed_of(run: RunData) -> str:
    """The seed of a run; "–" for one that has none."""
    return run.tags.get(SEED) or run.params.get(RUN_SEED, "–")


def group_runs(runs: Sequence[RunData], reader: Reader) -> list[Group]:
    """The runs by what they have in common but for the seed, in the order of their first ones.

    Args:
        runs: Which.
        reader: Of their store, for the runs whose checkpoints they start from.

    """
    sources = _sources(runs, reader)
    repeats: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, int], list[RunData]] = {}
    for run in runs:
        key, seed = _identity(run, sources), seed_of(run)
        # The same run made twice is no second seed.
        found.setdefault((key, repeats[key, seed]), []).append(run)
        repeats[key, seed] += 1
    studies = {run.tags.get(STUDY) for run in runs}
    return [Group(_label(members[0], len(studies) == 1), members) for members in found.values()]


def direction(metric: str) -> int:
    """1 for a metric that is better when higher, -1 when lower, 0 for one of which nothing is known."""
    last = re.split(r"[/_]", metric)
    if any(word in last for word in UPWARDS):
        return 1
    return -1 if any(word in last for word in DOWNWARDS) else 0


def best(groups: Sequence[Group], metric: str) -> float | None:
    """The best mean of the metric among the groups; None where none is better than another."""
    means = [summary.mean for group in groups if (summary := group.summary(metric)) is not None]
    means = [mean for mean in means if mean == mean]
    if len(means) < 2 or min(means) == max(means) or not direction(metric):
        return None
    return max(means) if direction(metric) > 0 else min(means)


def differences(groups: Sequence[Group], metric: str) -> list[Summary | None]:
    """How each group after the first differs from it, seed by seed."""
    first = groups[0].by_seed(metric)
    return [paired(group.by_seed(metric), first) for group in groups[1:]]


def _identity(run: RunData, sources: Mapping[str, RunData]) -> str:
    """What tells the run from others but for the seed: of a trial its number, else the parameters."""
    if TRIAL in run.tags and SEED in run.tags:
        return f"{run.tags.get(STUDY)} {run.tags[TRIAL]}"
    params = {name: value for name, value in run.params.items() if name not in (RUN_SEED, *NO_MATTER)}
    if params.get(DATA_SEED) == run.params.get(RUN_SEED):
        params.pop(DATA_SEED, None)
    for name, value in params.items():
        # An encoder that was trained for this seed is told by how, not by which run it was.
        if (source := _source(value)) is not None and source in sources:
            params[name] = _identity(sources[source], sources)
    return repr(sorted(params.items()))


def _sources(runs: Sequence[RunData], reader: Reader) -> dict[str, RunData]:
    """Every run that these start from, and those in turn."""
    found: dict[str, RunData] = {}
    wanted = {source for run in runs for value in run.params.values() if (source := _source(value))}
    while new := reader.runs(sorted(wanted - found.keys())):
        found |= {run.id: run for run in new}
        wanted = {source for run in new for value in run.params.values() if (source := _source(value))}
    return found


def _source(value: str) -> str | None:
    """The id of the run whose checkpoint the value names."""
    ids = RUN_ID.findall(value) if value.endswith(".ckpt") else []
    return ids[-1] if ids else None


def _label(run: RunData, one_study: bool) -> str:
    if TRIAL not in run.tags:
        return run.id[:8]
    return f"trial {run.tags[TRIAL]}" if one_study else f"{run.tags.get(STUDY)} {run.tags[TRIAL]}"
