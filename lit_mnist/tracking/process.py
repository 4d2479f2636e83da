"""Which process works on a run, told apart from a later one of the same number."""

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

import psutil

from lit_mnist.redaction import redact

SAME = 30.0
"""Seconds by which two readings of one process's start may differ: the clock may have been set between."""


def shown_arguments() -> list[str]:
    """The arguments of this process, without the program's name and without passwords."""
    return [redact(argument) for argument in sys.argv[1:]]


def this_host() -> str:
    """The machine's name, as the tag `host` has it."""
    return platform.node()


@lru_cache(maxsize=1)
def this_boot() -> str:
    """The id of the running kernel's start, whatever the host is called; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def this_process() -> str:
    """Number and start of this process, as the tag `process` has them."""
    return f"{os.getpid()}@{psutil.Process().create_time():.2f}"


def find_process(number: int | None) -> str | None:
    """What the living process of that number calls itself; None where there is none."""
    try:
        return None if number is None else f"{number}@{psutil.Process(number).create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def is_alive(process: str) -> bool:
    """Whether the process that called itself `process` on this host still lives."""
    number, _, start = process.partition("@")
    try:
        found = psutil.Process(int(number))
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - float(start)) < SAME
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
