"""Metric points, and which of them were replaced when a run was resumed with another configuration.

A run that is killed after its last checkpoint has logged points that its resumed training computes again. With the
same configuration they are bit-identical and are skipped. With another configuration, the old points would stay on
the curve next to the new ones. So the resume records a rewind: points after its step that were logged before its
time no longer count.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

Point = tuple[str, float, int, int]
"""Name, value, time in milliseconds since 1970, step."""

NEVER_REPLACED = ("system/", "test/", "reproduce/")
"""Prefixes of metrics that training does not compute, and that a rewind does not replace."""
REWOUND = "rewound"
"""The tag with a run's rewinds for stores that cannot delete points, as JSON: [[step, time], ...]."""


@dataclass(frozen=True)
class Rewind:
    """A resume with another configuration from the checkpoint of step `step`, at `time` (ms since 1970)."""

    step: int
    time: int

    def replaces(self, point: Point) -> bool:
        """True if the point was logged before the rewind and after its step."""
        name, _, at, step = point
        return step > self.step and at < self.time and not name.startswith(NEVER_REPLACED)


def drop_replaced(points: Iterable[Point], rewinds: Sequence[Rewind]) -> list[Point]:
    """The points that no rewind replaces, in their order."""
    return [point for point in points if not any(rewind.replaces(point) for rewind in rewinds)]


def newest_per_step(points: Iterable[Point]) -> list[Point]:
    """The newest point at each step, sorted by step, for the points of one metric."""
    newest: dict[int, Point] = {}
    for point in sorted(points, key=lambda point: point[2]):
        # Points are sorted by time, so later ones overwrite earlier ones.
        newest[point[3]] = point
    return [newest[step] for step in sorted(newest)]


def tagged_rewinds(tags: Mapping[str, str]) -> list[Rewind]:
    """The rewinds in a run's tags in the store."""
    return [Rewind(step, time) for step, time in json.loads(tags.get(REWOUND, "[]"))]


def add_to_tag(tags: Mapping[str, str], rewind: Rewind) -> str:
    """The value of the tag REWOUND with `rewind` added, unless it is already there."""
    # A rewind to an earlier step includes older rewinds to later steps, so the list does not grow without limit.
    # It is sorted and has no duplicates, so that the same rewinds always give the same text.
    others = [other for other in tagged_rewinds(tags) if other.step < rewind.step or other.time > rewind.time]
    return json.dumps(sorted({(other.step, other.time) for other in (*others, rewind)}))


def stored_points(
    client: "MlflowClient", run_id: str, metric: str, rewinds: Sequence[Rewind] | None = None
) -> list[Point]:
    """The curve of one metric from the store, with one point per step, sorted by step.

    Args:
        client: Client of the store.
        run_id: The run's full id.
        metric: The metric's name.
        rewinds: The run's rewinds; None reads them from its tags.

    """
    if rewinds is None:
        rewinds = tagged_rewinds(client.get_run(run_id).data.tags)
    # The store keeps every point that it was sent, including repeated steps.
    history = client.get_metric_history(run_id, metric)
    points = ((point.key, point.value, point.timestamp, point.step) for point in history)
    return newest_per_step(drop_replaced(points, rewinds))
