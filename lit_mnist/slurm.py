"""The SLURM job that this process runs in, as its environment variables describe it."""

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from lit_mnist.errors import UsageError

REQUEUE_CODE = 75
"""Exit code of saved but unfinished work (EX_TEMPFAIL in sysexits.h); the batch script requeues the job on it."""
WARNING = 120
"""Seconds before the time limit at which SLURM sends SIGUSR1; a quarter of the limit if that is less."""
ENDED = (
    "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL",
    "PREEMPTED", "REVOKED",
)  # fmt: skip
"""States of a job that has ended and will not start again."""
TASK_VARIABLES = (
    "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
    "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NPROCS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK",
    "NODE_RANK",
)  # fmt: skip
"""Variables that make Lightning treat a process as one rank of a distributed training."""

RANK_LEFT = "LIT_MNIST_TASK"
"""The variable in which `leave_tasks` stores the rank of the srun task, for `task_name`."""


@dataclass(frozen=True)
class Allocation:
    """The resources of a job, as seen by one of its processes.

    Attributes:
        job: The job's id; each task of a job array has its own.
        restarts: How often SLURM has restarted the job.
        node: The name of this node.
        step: True if `srun` started this process.
        tasks: The processes of the job step, over all nodes.
        rank: The index of this process among them; 0 in the batch script.
        cpus: CPU cores for each task; None if the job did not ask for a number.
    """

    job: str
    restarts: int
    node: str
    step: bool
    tasks: int
    rank: int
    cpus: int | None

    @property
    def tags(self) -> dict[str, str]:
        """MLflow tags of a run that this job trains."""
        return {"slurm.job": self.job, "slurm.restart": str(self.restarts), "slurm.node": self.node}


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation | None:
    """The job that this process runs in; None outside SLURM.

    Interactive shells (`salloc`, `srun --pty bash`) count as outside, as they do for Lightning: a command that is
    typed there should behave as on any machine.
    """
    if "SLURM_JOB_ID" not in environment or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None

    # None for a variable that is empty, too.
    def number(name: str) -> int | None:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else None

    # SLURM sets STEP_ID to a number in what srun starts, and in the batch script not at all.
    step = number("SLURM_STEP_ID") is not None
    return Allocation(
        job=environment["SLURM_JOB_ID"],
        restarts=number("SLURM_RESTART_COUNT") or 0,
        node=environment.get("SLURMD_NODENAME", ""),
        step=step,
        tasks=(number("SLURM_STEP_NUM_TASKS") if step else number("SLURM_NTASKS")) or 1,
        rank=(number("SLURM_PROCID") or 0) if step else 0,
        # Only set if the job asked for it.
        cpus=number("SLURM_CPUS_PER_TASK"),
    )


def local_task() -> tuple[int, int]:
    """Return the index of this process among the tasks of its job step on this node, and their number.

    Outside a job step, the process is alone: (0, 1).
    """
    # Only in a job step: elsewhere SLURM_LOCALID counts no tasks.
    job, index = allocation(), os.environ.get("SLURM_LOCALID", "")
    if job is None or not job.step or not index.isdecimal():
        return 0, 1
    # One number for each node, with repetitions abbreviated: "2(x3),1".
    counts: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.removesuffix(")") or 1)
    # This node's entry of the list.
    node = int(os.environ.get("SLURM_NODEID", 0))
    return int(index), max(counts[node] if node < len(counts) else 1, int(index) + 1)


def this_job() -> str:
    """Return the job of this process as ID.RESTARTS; empty outside SLURM."""
    job = allocation()
    return f"{job.job}.{job.restarts}" if job else ""


def threads_of_job() -> int | None:
    """The threads that a process of this job should compute with; None if it need not set a number.

    By default torch uses all cores of the host, which slows down a job that was given fewer.
    """
    job = allocation()
    return None if job is None or "OMP_NUM_THREADS" in os.environ else job.cpus


def memory_of_job() -> int | None:
    """Bytes of memory that this job may use on a node; None outside SLURM, or if it did not ask for any."""
    # 0 stands for all memory of the node.
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    return int(megabytes) * 2**20 if megabytes.isdigit() and int(megabytes) else None


def task_name() -> str:
    """Return the name of this array task or srun task, as in 7_2 or 7 task 3; empty outside SLURM."""
    if (job := allocation()) is None:
        return ""
    name, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{name}_{index}" if name and index else job.job
    rank = str(job.rank) if job.step and job.tasks > 1 else os.environ.get(RANK_LEFT, "")
    return f"{name} task {rank}" if rank else name


@dataclass(frozen=True)
class TimeLimit:
    """The time limit of a job, in seconds.

    Attributes:
        left: From now until the limit.
        total: From the current start of the job until the limit.
    """

    left: float
    total: float


def time_limit() -> TimeLimit | None:
    """Return the time limit of this job; None outside SLURM, without a limit, or if it cannot be determined."""
    try:
        if (job := allocation()) is None or (span := _job_span(job.job, job.restarts)) is None:
            return None
    except (OSError, subprocess.SubprocessError):  # not cached: a busy controller may answer next time
        return None
    start, end = span
    return TimeLimit(end - time.time(), end - start)


@lru_cache(maxsize=1)
def _job_span(job: str, restarts: int) -> tuple[float, float] | None:
    """Start of the job and end of its time limit, in seconds since 1970; `restarts` is for the cache only."""
    words = [os.environ.get(f"SLURM_JOB_{name}_TIME", "") for name in ("START", "END")]
    if not all(map(str.isdecimal, words)):  # SLURM 22.05 does not set these two, newer versions do
        # SLURM_JOB_ID of one task of an array is the id of the whole array, for which squeue lists every task.
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        command = ["squeue", "--noheader", "--jobs", f"{array}_{task}" if array else job, "--format", "%S %e"]
        environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
        words = done.stdout.split()
    # Without a time limit, the end is a year from now or not a number.
    return (float(words[0]), float(words[1])) if len(words) == 2 and all(map(str.isdecimal, words)) else None


def warning_time(limit: float | None) -> int:
    """Return how many seconds before the time limit SLURM is asked to send SIGUSR1 as a warning.

    Args:
        limit: The time limit in seconds; None if it is not known.

    """
    return WARNING if limit is None else min(WARNING, int(limit) // 4)


def leave_tasks() -> None:
    """Make this process and its children independent of the other tasks of the job.

    Without this, Lightning's `rank_zero_only` silences the logger of each sweep worker whose SLURM_PROCID is not
    0, and a `Trainer(devices=1)` refuses to start in a job of several tasks.
    """
    job = allocation()
    if job is not None and job.step and job.tasks > 1:
        os.environ[RANK_LEFT] = str(job.rank)
    for name in TASK_VARIABLES:
        os.environ.pop(name, None)


def check_tasks(devices: int, nodes: int) -> None:
    """Refuse a `fit` in a job whose number of processes does not match the Trainer.

    Args:
        devices: Devices that the training uses on each node.
        nodes: Nodes that it uses.

    Raises:
        UsageError: `srun` did not start exactly one process per device, or nothing starts processes on the other
            nodes.

    """
    # Checked before training starts, since a rank that waits for missing ranks hangs without any message.
    job, wanted = allocation(), devices * nodes
    # Outside a job step, Lightning starts the processes of one node itself.
    if job is None or (job.step and job.tasks == wanted) or (not job.step and nodes == 1):
        return
    if job.step:
        raise UsageError(
            f"srun started {job.tasks} processes and the training uses {wanted} ({nodes} nodes × {devices} devices"
            f" each): take `srun --ntasks={wanted}`, or set --trainer.devices and --trainer.num_nodes to match"
        )
    raise UsageError(
        f"--trainer.num_nodes {nodes}: nothing in this job starts processes on the other nodes; put"
        f" `srun --ntasks={wanted}` before the command, or let `lit-mnist submit` write the script"
    )


def is_gone(job: str, restarts: int) -> bool | None:
    """Return True if no process of this start of the job can still be running; None if SLURM does not answer.

    Args:
        job: The id of a job or of an array task.
        restarts: Which start of the job: how often it had been requeued before.

    """
    # First the environment of this process, which needs no request to the SLURM controller.
    here = allocation()
    if here is not None and here.job == job and here.restarts > restarts:
        return True  # SLURM restarts a job only after all processes of the previous start have ended
    # All states, since squeue still lists a job for some minutes after its end.
    command = ["squeue", "--noheader", "--array", "--jobs", job, "--states", "all", "--format", "%A %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        # SLURM forgets a job MinJobAge seconds (300 by default) after its end, and then calls its id invalid.
        return True if "Invalid job id" in done.stderr else None
    # One task of an array has the id of the whole array, for which squeue lists every task.
    states = [state for found, state in (line.split() for line in done.stdout.splitlines()) if found == job]
    # A job that waits for a restart has no process; a COMPLETING job may still have some.
    return all(state in ("PENDING", *ENDED) for state in states)
