"""Identity of processes and hosts, which distinguishes a process from a later one with the same process id."""

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

import psutil

from lit_mnist.redaction import redact
from lit_mnist.slurm import allocation

START_TOLERANCE = 30.0
"""Seconds by which two readings of a process's start time may differ, if the clock was adjusted."""


def shown_arguments() -> list[str]:
    """The arguments of this process, without the program's name and without passwords."""
    return [redact(argument) for argument in sys.argv[1:]]


def this_host() -> str:
    """The host's name, as in the tag `host`."""
    return platform.node()


@lru_cache(maxsize=1)
def this_boot() -> str:
    """Return an id of the running kernel, and after a slash an id of the process namespace.

    The first part is the same in all containers and under all host names. Empty if the system does not provide it.
    """
    try:
        boot, namespace = (
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            Path("/proc/self/ns/pid").stat(),
        )
    except OSError:
        return ""
    # Two containers on one kernel have separate process ids and different namespaces. The number of a namespace is
    # reused, often by the next container, so the start time of its process 1 (field 22 of its stat, in clock ticks
    # since boot) is added. If /proc is mounted with hidepid, this cannot be read for another user's process.
    try:
        started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return f"{boot}/{namespace.st_ino}"
    return f"{boot}/{namespace.st_ino}.{started}"


def same_numbering(boot: str, other: str) -> bool:
    """True if two results of `this_boot` have the same kernel and process namespace."""
    # The start time after the dot is missing in values of earlier versions, or if process 1 could not be read.
    if "." in boot and "." in other:
        return boot == other
    return boot.partition(".")[0] == other.partition(".")[0]


def this_process() -> str:
    """Process id and start time of this process, as in the tag `process`: ID@SECONDS."""
    # The kernel's start time; its last digits depend on the clock (see START_TOLERANCE).
    return f"{os.getpid()}@{psutil.Process().create_time():.2f}"


def sees_processes_of(host: str, boot: str) -> bool:
    """True if a process of that host and boot can be looked up by its process id from here.

    Host names are not sufficient, since two containers may have the same name but separate process ids.

    Args:
        host: A result of `this_host`.
        boot: A result of `this_boot`; empty if it is unknown, and then the host name decides.

    """
    return same_numbering(boot, this_boot()) if boot and this_boot() else host == this_host()


def process_tags() -> dict[str, str]:
    """Tags with the process that works on a run, and its SLURM job; see `liveness`."""
    job = allocation()
    return {
        "host": this_host(),
        "process": this_process(),
        "boot": this_boot(),
        # Tags of an earlier job cannot be removed, so the process shows whether they are current.
        **({**job.tags, "slurm.process": this_process()} if job else {}),
    }


def find_process(number: int | None) -> str | None:
    """The living process with that process id, as ID@SECONDS; None if there is none."""
    try:
        return None if number is None else f"{number}@{psutil.Process(number).create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def is_alive(process: str) -> bool:
    """True if the process ID@SECONDS of this host is alive; False for a zombie, or if the id was reused."""
    number, _, start = process.partition("@")
    try:
        found = psutil.Process(int(number))
        # Process ids are reused; together with the start time, an id identifies a process.
        same = abs(found.create_time() - float(start)) < START_TOLERANCE
        # A zombie has ended, but its parent has not read its exit code yet.
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # another user's process, which exists but cannot be inspected
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
