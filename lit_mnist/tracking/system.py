"""The machine's load, sampled by MLflow's own monitors, under MLflow's own names."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Metric


class SystemMetrics:
    """Samples of processor, memory, disk, network and GPU.

    The step of a point is the seconds since the start, so that a run that goes on later draws one line.
    """

    def __init__(self, every: float = 10.0, first: float = 2.0) -> None:
        self.every = every
        self.start = time.time()
        self._due = self.start + first
        self._step = -1
        self._monitors: list[Any] | None = None

    def is_due(self) -> bool:
        """Whether it is time for the next sample."""
        return time.time() >= self._due

    def sample(self) -> "list[Metric]":
        """One point a metric."""
        from mlflow.entities import Metric

        now = time.time()
        self._due = now + self.every
        self._step = max(int(now - self.start), self._step + 1)  # the last sample may follow within the second
        points = []
        for monitor in self._open():
            monitor.collect_metrics()
            for name, value in monitor.aggregate_metrics().items():
                points.append(Metric(f"system/{name}", value, int(now * 1000), self._step))
            monitor.clear_metrics()
        return points

    def _open(self) -> list[Any]:
        if self._monitors is None:
            from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
            from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
            from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

            kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
            self._monitors = [*(kind() for kind in kinds), *_gpu()]
        return self._monitors


def _gpu() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [GPUMonitor()]  # type: ignore[no-untyped-call]
    except Exception:  # no NVIDIA library, no driver, or no GPU: each raises its own
        return []
