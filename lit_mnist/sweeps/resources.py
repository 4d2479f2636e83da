"""This machine's cores and GPUs, and each worker's share of them."""

import os
from collections.abc import Sequence

from lit_mnist.errors import UsageError
from lit_mnist.slurm import allocation, local_task

Devices = int | str | list[int]
"""A value of `trainer.devices`: a number, indices (a list or text such as "0,1"), or "auto" or -1 for all."""


def cores() -> int:
    """Return how many cores this process may use; on a cluster, those of its allocation."""
    # The affinity instead of the number of cores: taskset and cpusets (containers, SLURM) restrict a process.
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = allocation()
    # A cluster without cgroups does not enforce the job's number of cores.
    return min(found, job.cpus) if job is not None and job.cpus else found


def threads_each(workers: int) -> int:
    """Return the number of threads for each of `workers` processes; at most OMP_NUM_THREADS, if it is set."""
    share = max(1, cores() // workers)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    # Not torch.cuda.device_count(): if CUDA is initialised in this process, forked processes cannot use it.
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def take_task_share() -> None:
    """Restrict this process to its share of the GPUs if all tasks of the job step on this node see the same GPUs.

    With `srun --ntasks-per-node=4` in a job with `--gpus-per-node=4`, each task sees all four GPUs and would use
    the first. With `--gpus-per-task=1`, SLURM already gives each task its own GPU.
    """
    # SLURM has divided the GPUs if `--gpus-per-task` was given, or if this task sees fewer than the node has.
    index, tasks = local_task()
    gpus = visible_gpus() if tasks > 1 else []
    on_node = os.environ.get("SLURM_GPUS_ON_NODE", "")
    is_bound = "SLURM_GPUS_PER_TASK" in os.environ or (on_node.isdecimal() and len(gpus) < int(on_node))
    if not gpus or is_bound:
        return
    # Consecutive tasks get consecutive GPUs; with more tasks than GPUs, several tasks share one.
    share = gpus[index * len(gpus) // tasks : (index + 1) * len(gpus) // tasks]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share or [gpus[index % len(gpus)]])


def count_devices(devices: Devices) -> int | None:
    """Return how many devices a training uses; None for all visible ones."""
    if isinstance(devices, str) and "," in devices:
        return len([index for index in devices.split(",") if index.strip()])
    if isinstance(devices, list):
        return len(devices)
    return None if str(devices) in ("auto", "-1") else int(devices)


def worker_gpus(gpus: Sequence[str], workers: int, devices: Sequence[Devices]) -> list[str]:
    """Divide this machine's GPUs between workers.

    Args:
        gpus: The GPUs that this process may use, see `visible_gpus`.
        workers: Number of workers.
        devices: Every value of `trainer.devices` in the study.

    Returns:
        CUDA_VISIBLE_DEVICES of each worker; empty if all of them see all GPUs.

    Raises:
        UsageError: there are too few GPUs.

    """
    # Without GPUs, a trial with several devices uses that number of processes on the CPU.
    if not gpus:
        return []
    listed = [value for value in devices if isinstance(value, list) or "," in str(value)]
    for value in listed:
        # Indices refer to all GPUs that the sweep sees, so every worker must see all of them.
        indices = value if isinstance(value, list) else [int(index) for index in str(value).split(",") if index]
        if max(indices, default=0) >= len(gpus):
            raise UsageError(f"trainer.devices {value}: there are {len(gpus)} GPUs here, counted from 0")
        if workers > 1 and len(indices) > 1:
            raise UsageError(
                f"trainer.devices {value}: each of the {workers} workers would train on the same GPUs; give their"
                f" number, trainer.devices {len(indices)}, or take --workers 1"
            )
    if listed:
        return []
    # Sized for the largest training of the space, so that a study can mix trials on one device and on two.
    counts = [count_devices(value) for value in devices]
    # A training on "all" GPUs uses all GPUs of its worker.
    each = max(count or max(1, len(gpus) // workers) for count in counts)
    # With more workers than GPUs, several workers share one: small networks leave most of a GPU idle.
    if each == 1:
        return [gpus[number % len(gpus)] for number in range(workers)]
    if each * workers > len(gpus):
        of = "1 worker" if workers == 1 else f"{workers} workers"
        raise UsageError(
            f"{of} with trainer.devices {each} need {each * workers} GPUs, and there are {len(gpus)} here: lower"
            " --workers or trainer.devices"
        )
    return [",".join(gpus[number * each : (number + 1) * each]) for number in range(workers)]
