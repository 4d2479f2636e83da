"""Where workers come from: a process that has imported everything, and of which each worker is a copy.

Lightning, torch and MLflow take seconds to import. Workers of their own would each take them, and the memory.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType

from lit_mnist.errors import UserError
from lit_mnist.guard import guarded

FORKS = sys.platform == "linux"
"""Elsewhere the libraries' own threads do not survive a fork, and each worker starts from nothing."""
TRIES = 10
"""Fork servers that are started for a worker, each of which may be killed while it imports."""
PRELOAD = "lit_mnist.sweeps.workers.preload"


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker begins with."""

    study: str
    number: int
    threads: int
    environment: Mapping[str, str]
    stdin: Connection
    """Its leash."""
    stderr: Connection


def prepare(workers: int) -> None:
    """Let the process that so many workers are to be copies of import what they need, beside the caller."""
    if not FORKS:
        return
    from multiprocessing.forkserver import ensure_running, set_forkserver_preload

    set_forkserver_preload([PRELOAD])
    with _threads(threads_each(workers)):
        ensure_running()


def context() -> BaseContext:
    """How processes are started."""
    return multiprocessing.get_context("forkserver" if FORKS else "spawn")


def start_worker(config: WorkerConfig) -> BaseProcess:
    """A worker's process.

    Raises:
        UserError: there can be none.

    """
    for tries_left in reversed(range(TRIES)):
        process: BaseProcess = context().Process(target=worker_main, args=(config,))  # type: ignore[attr-defined]
        try:
            with _without_main(), _threads(config.threads):
                process.start()
            return process
        except (OSError, EOFError) as error:  # the fork server was killed; the next try starts another one
            if not tries_left:
                raise UserError(f"no worker can be started: {str(error) or type(error).__name__}") from None
            # A killed process refuses connections some time before the system says that it is dead.
            time.sleep(0.1)
    raise AssertionError("the last try returns or raises")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let a fork server that is started meanwhile have so many threads: some of what it imports looks but once."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep the caller's script from multiprocessing, which would run it again in each worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def worker_main(config: WorkerConfig) -> None:
    """A worker's life."""
    os.setsid()  # a terminal's signals come by way of the supervisor, once
    os.dup2(config.stdin.fileno(), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(config.stderr.fileno(), 2)
    config.stdin.close()
    config.stderr.close()
    sys.stdin = os.fdopen(0)
    sys.argv = ["lit-mnist", "sweep", "worker", config.study]
    os.environ.clear()
    os.environ.update(config.environment)
    if FORKS:
        from lit_mnist.sweeps.workers.preload import HANDLERS

        for number, handler in HANDLERS.items():
            signal.signal(number, handler)
    from lit_mnist.sweeps.workers.worker import run_worker
    from lit_mnist.terminal import quiet

    quiet()
    sys.exit(guarded(lambda: run_worker(config.study, config.number, config.threads)))


def threads_each(workers: int) -> int:
    """Each worker's share of the cores; no more than OMP_NUM_THREADS, where the user has set it."""
    share = max(1, cores() // workers)
    most = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(most)) if most.isdecimal() and int(most) else share


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
