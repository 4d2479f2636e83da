"""This machine's cores and GPUs, and each worker's share of them."""

import os

from lit_mnist.slurm import allocation


def cores() -> int:
    """Return how many cores this process may use, which on a cluster are those of its allocation."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = allocation()
    # A cluster without cgroups confines a job by its word only.
    return min(found, job.cpus) if job is not None and job.cpus else found


def threads_each(workers: int) -> int:
    """Return how many threads each of `workers` processes computes with; at most OMP_NUM_THREADS, if it is set."""
    share = max(1, cores() // workers)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    # Not torch.cuda.device_count(): CUDA, once initialised here, would be unusable in every process forked from
    # here.
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
