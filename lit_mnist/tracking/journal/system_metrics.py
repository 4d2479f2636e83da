"""The machine's load, with the metric names of MLflow's own monitors.

MLflow's monitors are not used: importing them takes a second, and they work only with MLflow's fluent API.
"""

import os
import time
from contextlib import suppress
from typing import Any

import psutil

from lit_mnist.tracking.journal.points import Point

PREFIX = "system/"
SAMPLE_INTERVAL = 10.0
"""Seconds between two samples."""


class SystemMetrics:
    """Samples of processor, memory, disk, network and GPU.

    The step of a point is a number of seconds that continues from the run's last process, so that a resumed run
    has one continuous line.

    Args:
        first: Seconds before the first sample.
        last_step: The largest step that the run has already logged.
        short_runs: Take one sample if the run ends before `first`.

    """

    def __init__(self, first: float = 2.0, last_step: int = -1, short_runs: bool = True) -> None:
        # The time of step 0, such that steps continue after those of the last process.
        self._start = time.time() - max(last_step, 0)
        self._due = time.time() + first
        self._step = last_step
        self.samples_end = short_runs
        """True to take a sample at the end of the run."""
        self._gpus: list[Any] | None = None
        self._received, self._transmitted = _network_megabytes()

    def is_due(self) -> bool:
        """True if it is time for the next sample."""
        return time.time() >= self._due

    def sample(self) -> list[Point]:
        """One point for each metric that the machine provides."""
        now = time.time()
        self._due = now + SAMPLE_INTERVAL
        self.samples_end = True
        self._step = max(int(now - self._start), self._step + 1)  # two samples may be less than a second apart
        values: dict[str, float] = {}
        for part in (self._cpu_and_memory, self._disk, self._network, self._gpu):
            with suppress(Exception):  # a machine that lacks one kind of metric may have the others
                values |= part()
        return [(f"{PREFIX}{name}", value, int(now * 1000), self._step) for name, value in values.items()]

    def _cpu_and_memory(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            # The mean since the thread's last call, and so over the whole interval; the first call returns 0.
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
            "system_memory_usage_percentage": _percent(memory.used, memory.total),
        }

    def _disk(self) -> dict[str, float]:
        usage = psutil.disk_usage(os.sep)
        return {
            "disk_usage_percentage": usage.percent,
            "disk_usage_megabytes": round(usage.used / 1e6, 1),
            "disk_available_megabytes": round(usage.free / 1e6, 1),
        }

    def _network(self) -> dict[str, float]:
        received, transmitted = _network_megabytes()
        return {
            # Since this process began, as in MLflow's monitor.
            "network_receive_megabytes": received - self._received,
            "network_transmit_megabytes": transmitted - self._transmitted,
        }

    def _gpu(self) -> dict[str, float]:
        import pynvml

        if self._gpus is None:
            self._gpus = []  # do not try again if there is no driver
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        values: dict[str, float] = {}
        for i, gpu in enumerate(self._gpus):
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            values[f"gpu_{i}_memory_usage_percentage"] = _percent(memory.used, memory.total)
            values[f"gpu_{i}_memory_usage_megabytes"] = round(memory.used / 1e6, 1)
            with suppress(pynvml.NVMLError):  # not every model has this counter
                values[f"gpu_{i}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            with suppress(pynvml.NVMLError):
                power, limit = pynvml.nvmlDeviceGetPowerUsage(gpu), pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
                # NVML gives milliwatts.
                values[f"gpu_{i}_power_usage_watts"] = round(power / 1000, 1)
                values[f"gpu_{i}_power_usage_percentage"] = _percent(power, limit)
        return values


def _network_megabytes() -> tuple[float, float]:
    """Megabytes received and transmitted since the machine was started; zeros where they cannot be read."""
    try:
        counters = psutil.net_io_counters()
    except OSError:
        return 0.0, 0.0
    return counters.bytes_recv / 1e6, counters.bytes_sent / 1e6


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1)
