"""Starts worker processes on this machine.

Importing Lightning, torch and MLflow takes seconds and hundreds of megabytes. A fork server imports them once (see
`preload`), while the command still reads and checks its specification; all workers are forks of it and share that
memory.
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
from lit_mnist.sweeps.resources import threads_each

CAN_FORK = sys.platform == "linux"
"""False on systems where libraries do not support forking: there, each worker is a new interpreter."""
MAX_ATTEMPTS = 10
"""Number of attempts to start a worker; a killed fork server is replaced before each."""


@dataclass(frozen=True)
class WorkerConfig:
    """The parameters of a worker process."""

    study: str
    number: int
    threads: int
    environment: Mapping[str, str]
    stdin: Connection
    """The reading end of the pipe from its parent, see `parent_watch`."""
    stderr: Connection


def prepare(workers: int) -> None:
    """Start the fork server, which imports the libraries for workers while the caller continues.

    Args:
        workers: Number of workers, which determines their number of threads.

    """
    if CAN_FORK:
        from multiprocessing.forkserver import ensure_running, set_forkserver_preload

        # The number of threads is set first, since libraries read it when the server imports them.
        set_forkserver_preload(["lit_mnist.sweeps.workers.preload"])
        with _thread_limit(threads_each(workers)):
            ensure_running()


def context() -> BaseContext:
    """Return the multiprocessing context of workers and of the pipes to them."""
    return multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")


def start_worker(config: WorkerConfig) -> BaseProcess:
    """Start a worker process.

    Raises:
        UserError: the system refuses.

    """
    # multiprocessing would import the caller's script in each child, to find functions that it defines. That is
    # not needed here, and a script without `if __name__ == "__main__"` would start the sweep again.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            process: BaseProcess = context().Process(target=worker_main, args=(config,))  # type: ignore[attr-defined]
            try:
                with _thread_limit(config.threads):
                    process.start()
                return process
            except (OSError, EOFError) as error:
                # The fork server was killed. multiprocessing starts another one at the next attempt.
                if attempt == MAX_ATTEMPTS:
                    raise UserError(f"no worker can be started: {str(error) or type(error).__name__}") from None
                # A killed process refuses connections shortly before the system reports that it is dead.
                time.sleep(0.1)
    finally:
        sys.modules["__main__"] = main
    raise AssertionError("the last attempt returns or raises")


def worker_main(config: WorkerConfig) -> None:
    """Run a worker in this process, which was just forked or spawned, and exit."""
    # In its own session, the worker gets no signals from the terminal; the sweep passes each signal on, once.
    os.setsid()
    # The pipes become the standard streams: libraries and child processes use these by their numbers.
    os.dup2(config.stdin.fileno(), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(config.stderr.fileno(), 2)
    config.stdin.close()
    config.stderr.close()
    sys.stdin = os.fdopen(0)
    # A fork has the arguments and the old environment of the fork server. The tags of runs show the arguments.
    sys.argv = ["lit-mnist", "sweep", "worker", config.study]
    os.environ.clear()
    os.environ.update(config.environment)
    if CAN_FORK:
        from lit_mnist.sweeps.workers.preload import HANDLERS

        # Restore the handlers, since the fork server ignores signals.
        for number, handler in HANDLERS.items():
            signal.signal(number, handler)
    from lit_mnist.sweeps.workers.worker import run_worker
    from lit_mnist.terminal import quiet

    quiet()
    sys.exit(guarded(lambda: run_worker(config.study, config.number, config.threads)))


@contextmanager
def _thread_limit(count: int) -> Iterator[None]:
    """Set OMP_NUM_THREADS for a fork server started inside the block; libraries read it once, when imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
