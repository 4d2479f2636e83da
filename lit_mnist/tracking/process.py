"""Identity of processes and hosts, such that a process is not confused with a later one of the same number."""

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

import psutil

from lit_mnist.redaction import redact
from lit_mnist.slurm import allocation

START_TOLERANCE = 30.0
"""Seconds by which two readings of one process's start may differ, because the clock was set in between."""


def shown_arguments() -> list[str]:
    """The arguments of this process, without the program's name and without passwords."""
    return [redact(argument) for argument in sys.argv[1:]]


def this_host() -> str:
    """The host's name, as in the tag `host`."""
    return platform.node()


@lru_cache(maxsize=1)
def this_boot() -> str:
    """Return an id of the running kernel, and after a slash one of the namespace in which processes are numbered.

    The first part is the same in all containers and under all host names; empty where the system has none.
    """
    try:
        boot, namespace = (
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            Path("/proc/self/ns/pid").stat(),
        )
    except OSError:
        return ""
    # Two containers of one kernel number their processes separately, and have different namespaces. The number of
    # a namespace is given again as soon as it is free, often to the next container, so the start of its process 1
    # (field 22 of its stat, in clock ticks since boot) belongs to it. Where /proc is mounted with hidepid, that of
    # another user cannot be read.
    try:
        started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return f"{boot}/{namespace.st_ino}"
    return f"{boot}/{namespace.st_ino}.{started}"


def same_numbering(boot: str, other: str) -> bool:
    """True if processes with those ids from `this_boot` are numbered together: same kernel, same namespace."""
    # What an earlier version stored, or a process that cannot read process 1, lacks the start after the dot.
    if "." in boot and "." in other:
        return boot == other
    return boot.partition(".")[0] == other.partition(".")[0]


def this_process() -> str:
    """Number and start time of this process, as in the tag `process`: NUMBER@SECONDS."""
    # The start time is read from the kernel; its last digits depend on the clock (see START_TOLERANCE).
    return f"{os.getpid()}@{psutil.Process().create_time():.2f}"


def sees_processes_of(host: str, boot: str) -> bool:
    """True if a process of that host and boot can be looked up by its number from here.

    Host names do not decide it: two containers may have one name, and number their processes each for itself.

    Args:
        host: As from `this_host`.
        boot: As from `this_boot`; empty where it is not known, so that the name has to do.

    """
    return same_numbering(boot, this_boot()) if boot and this_boot() else host == this_host()


def process_tags() -> dict[str, str]:
    """Tags that say which process works on a run, and in which SLURM job; see `liveness`."""
    job = allocation()
    return {
        "host": this_host(),
        "process": this_process(),
        "boot": this_boot(),
        # Tags cannot be removed for good: the process says whether those of a job are the latest.
        **({**job.tags, "slurm.process": this_process()} if job else {}),
    }


def find_process(number: int | None) -> str | None:
    """The living process with that number, as NUMBER@SECONDS; None if there is none."""
    try:
        return None if number is None else f"{number}@{psutil.Process(number).create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def is_alive(process: str) -> bool:
    """True if the process NUMBER@SECONDS of this host is alive, and neither a zombie nor a successor."""
    number, _, start = process.partition("@")
    try:
        found = psutil.Process(int(number))
        # A process id is given again after it has ended; together with the start time it names one process.
        same = abs(found.create_time() - float(start)) < START_TOLERANCE
        # A zombie has ended; only its parent has not asked for its exit code yet.
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # another user's process: it exists, and nothing more can be read
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
