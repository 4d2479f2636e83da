"""The launcher for this machine: starts worker processes, watches them, replaces dead ones, and ends them."""

import collections
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from lit_mnist.errors import UserError
from lit_mnist.guard import ERROR
from lit_mnist.sweeps.resources import threads_each
from lit_mnist.sweeps.study.storage import STORAGE_VARIABLE
from lit_mnist.sweeps.workers.errors import ReleasedError
from lit_mnist.sweeps.workers.parent_watch import SAVE_TIMEOUT, START
from lit_mnist.sweeps.workers.spawn import WorkerConfig, context, prepare, start_worker
from lit_mnist.terminal import note
from lit_mnist.tracking.process import find_process, is_alive

MAX_DEATHS = {"error": 3, "release": 10, "kill": 20}
"""Number of consecutive deaths of workers, without progress of any trial, after which the sweep gives up.

A worker that releases a trial after an error ends and is replaced. Each trial is released a few times at most (see
`leases.MAX_RELEASES`), so the limit for releases is higher: several trials may fail like this while others
succeed.
"""
STDERR_LINES = 50
"""Number of last lines of a worker's stderr that are kept for the error message of the sweep."""
UNKNOWN_EXIT_CODE = 255
"""Exit code that multiprocessing reports for a process whose fork server died first."""


class WorkerProcess:
    """One worker process.

    Args:
        number: The worker's number; its replacement gets the same number.
        process: The process.
        stdin: The writing end of the pipe to the process, which stays open while the parent is alive.
        stderr: The reading end of the pipe from the process.
        on_line: Called, in a thread, with each line of its stderr.

    """

    def __init__(
        self,
        number: int,
        process: BaseProcess,
        stdin: Connection,
        stderr: Connection,
        on_line: Callable[[str], None],
    ) -> None:
        self.number, self.process, self.stdin = number, process, stdin
        self.last_lines: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        # Process id and start time, since ids are reused.
        self._identity = find_process(process.pid)
        self._reader = threading.Thread(target=self._read, args=(stderr, on_line), daemon=True)
        self._reader.start()

    def is_alive_process(self) -> bool:
        """True if the process is alive, even after its fork server has died.

        `Process.is_alive` relies on a message from the fork server, and also returns False if the server died.
        """
        return self._identity is not None and is_alive(self._identity)

    def exit_code(self) -> int:
        """Return the exit code of the dead process; that of SIGKILL if it is unknown."""
        # The fork server reports the exit code shortly after the process has ended.
        self.process.join(1)
        code = self.process.exitcode
        return -signal.SIGKILL if code in (None, UNKNOWN_EXIT_CODE) else int(code)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process if it is alive."""
        # This checks the start time too, since the system may have given the process id to another process.
        if self.is_alive_process() and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def start_work(self) -> None:
        """Let the worker begin."""
        with contextlib.suppress(OSError):  # it is already dead, and `WorkerPool.poll` replaces it
            os.write(self.stdin.fileno(), f"{START}\n".encode())

    def wait(self, timeout: float) -> None:
        """Return when the process has ended; kill it after `timeout` seconds."""
        # Not `Process.join`, which waits for a message of the fork server.
        deadline = time.monotonic() + timeout
        while self.is_alive_process():
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
            time.sleep(0.02)

    def clean_up(self) -> None:
        """Close the pipes of a dead process, after reading its last output."""
        self.stdin.close()
        self._reader.join(5)

    def _read(self, stderr: Connection, on_line: Callable[[str], None]) -> None:
        # A copy of the descriptor, because the pipe and the file object each close theirs.
        with stderr, os.fdopen(os.dup(stderr.fileno()), errors="replace") as lines:
            for line in map(str.rstrip, lines):
                self.last_lines.append(line)
                on_line(line)


class WorkerPool:
    """A `Launcher` of processes on this machine, which are started with the pool and wait for `start`.

    Args:
        study: The study's name.
        url: Its storage, as in LIT_MNIST_STORAGE.
        workers: Number of processes.
        gpus: CUDA_VISIBLE_DEVICES of each worker; empty if workers see all GPUs.

    """

    def __init__(self, study: str, url: str, workers: int, gpus: Sequence[str] = ()) -> None:
        self.study, self.url, self.workers, self._gpus = study, url, workers, gpus
        self.threads = threads_each(workers)
        self._printed: set[str] = set()
        self._deaths = dict.fromkeys(MAX_DEATHS, 0)
        self._is_closed = False
        self.members: list[WorkerProcess] = []
        # Start the fork server, unless the command has already done so.
        prepare(workers)
        try:
            for number in range(workers):
                self.members.append(self._start_worker(number))
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Let the workers begin."""
        for member in self.members:
            member.start_work()

    def poll(self, has_progressed: bool, is_finished: Callable[[], bool]) -> bool:
        """Replace workers that have died; return False if none is left; see `Launcher`."""
        # A trial has progressed, so the earlier deaths do not stop the study.
        if has_progressed:
            self._deaths = dict.fromkeys(MAX_DEATHS, 0)
        for member in [member for member in self.members if not member.is_alive_process()]:
            self.members.remove(member)
            member.clean_up()
            code = member.exit_code()
            # 0 means that the worker found nothing left to do. The study is checked only now, since another worker
            # may have finished the last trial before this one died.
            if code == 0 or self._is_closed or is_finished():
                continue
            self._count_death(member, code)
            self.members.append(self._start_worker(member.number))
            self.members[-1].start_work()
        return bool(self.members)

    def signal(self, number: int) -> None:
        """Send a signal to every worker."""
        for member in self.members:
            member.send_signal(number)

    def close(self, kill: bool = False) -> None:
        """End the workers: at once with `kill`, otherwise after each has saved its trial."""
        # Set before any worker ends, so that `poll` does not replace it.
        self._is_closed = True
        for member in self.members:
            member.stdin.close()  # the worker's `ParentWatch` then ends the worker
            if kill:
                member.send_signal(signal.SIGKILL)
        for member in self.members:
            member.wait(SAVE_TIMEOUT)
            member.clean_up()
        self.members = []

    def _start_worker(self, number: int) -> WorkerProcess:
        # The storage's URL is passed in the environment: it may contain a password, and all users can read a
        # command line.
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), STORAGE_VARIABLE: self.url}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[number]
        child_stdin, stdin = context().Pipe(duplex=False)
        stderr, child_stderr = context().Pipe(duplex=False)
        # Close the child's ends in this process: a pipe ends only when every copy of its end is closed.
        with child_stdin, child_stderr:
            config = WorkerConfig(self.study, number, self.threads, environment, child_stdin, child_stderr)
            process = start_worker(config)
        return WorkerProcess(number, process, stdin, stderr, self._print_once)

    def _print_once(self, line: str) -> None:
        """Print a worker's remark unless another worker has already printed it; errors are not printed."""
        text = line.removeprefix("lit-mnist: ")
        if text != line and not text.startswith(("error: ", "stopped by ")) and text not in self._printed:
            self._printed.add(text)
            note(text)

    def _count_death(self, member: WorkerProcess, code: int) -> None:
        """Count a worker's death.

        Raises:
            UserError: the limit is reached.

        """
        kind = "kill" if code < 0 else "release" if code == ReleasedError.exit_code else "error"
        self._deaths[kind] += 1
        if self._deaths[kind] < MAX_DEATHS[kind]:
            return
        reason = f"exit code {code}"
        if code > 0 and member.last_lines:
            reason = member.last_lines[-1]
        # Prefer the last error line of this project, since a library may have printed something after it.
        for line in member.last_lines:
            if line.startswith(ERROR):
                reason = line.removeprefix(ERROR) or reason
        raise UserError(f"workers die and no trial gets any further; the last one: {reason}")
