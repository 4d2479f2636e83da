"""The workers of one `lit-mnist sweep`: processes that are started, watched, replaced and ended."""

import collections
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from lit_mnist.errors import UserError
from lit_mnist.guard import ERROR
from lit_mnist.sweeps.study.storage import STORAGE_VARIABLE
from lit_mnist.sweeps.workers.errors import ReleasedError
from lit_mnist.sweeps.workers.parent_watch import GO
from lit_mnist.sweeps.workers.spawn import WorkerConfig, context, prepare, start_worker, threads_each
from lit_mnist.terminal import note
from lit_mnist.tracking.process import find_process, is_alive

MOST_DEATHS = {"error": 3, "release": 10, "kill": 20}
"""Deaths in a row, with no trial getting further between, after which something is wrong for good.

A worker that releases a trial ends too, and is replaced. Each trial is released a few times at most, so that the
limit is higher there: several trials may fail in this way one after the other while the rest is fine."""
PATIENCE = 120.0
"""Seconds that a worker has for saving its trial."""
UNKNOWN = 255
"""The exit code, to multiprocessing, of a process whose fork server is dead."""


@dataclass
class WorkerProcess:
    """One worker process."""

    number: int
    process: BaseProcess
    pipe: Connection
    reader: threading.Thread | None = None
    last: "collections.deque[str]" = field(default_factory=lambda: collections.deque(maxlen=50))
    """The end of what it has written to its stderr."""

    def __post_init__(self) -> None:
        self._seen = find_process(self.process.pid)

    def is_alive_process(self) -> bool:
        """Whether it does, be the fork server, which would tell of its end, dead itself."""
        return self._seen is not None and is_alive(self._seen)

    def code(self) -> int:
        """The exit code of one that is dead; that of a killed one, if nobody is left to tell."""
        self.process.join(1)
        code = self.process.exitcode
        return -signal.SIGKILL if code in (None, UNKNOWN) else int(code)

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self.is_alive_process() and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def wait(self, patience: float) -> None:
        """Return when it is dead, which after `patience` seconds it is made."""
        end = time.monotonic() + patience
        while self.is_alive_process():
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(0.02)

    def go(self) -> None:
        """Let it begin; one that is dead does not hear it, and is replaced."""
        with contextlib.suppress(OSError):
            os.write(self.pipe.fileno(), f"{GO}\n".encode())

    def clear_away(self) -> None:
        """Read what a dead one has left to say."""
        self.pipe.close()
        if self.reader is not None:
            self.reader.join(5)


class WorkerPool:
    """The worker processes.

    Args:
        study: The study's name.
        url: Its storage, as LIT_MNIST_STORAGE has it.
        workers: How many.
        gpus: Of which each worker gets one for its own.

    """

    def __init__(self, study: str, url: str, workers: int, gpus: Sequence[str] = ()) -> None:
        self.study, self.url, self.workers = study, url, workers
        self.threads = threads_each(workers)
        self._gpus = gpus
        self._said: set[str] = set()
        self._deaths = dict.fromkeys(MOST_DEATHS, 0)
        prepare(workers)
        self._ended = False
        self.members: list[WorkerProcess] = []
        try:
            for number in range(workers):
                self.members.append(self._start(number))
        except BaseException:
            self.close()
            raise

    def go(self) -> None:
        """Let the workers begin."""
        for member in self.members:
            member.go()

    def look(self, finished: Callable[[], bool]) -> bool:
        """Replace who has died; whether anybody is still at work.

        Raises:
            UserError: workers die again and again.

        """
        for member in [member for member in self.members if not member.is_alive_process()]:
            self.members.remove(member)
            member.clear_away()
            code = member.code()
            if code == 0 or self._ended or finished():
                continue
            self._count_death(member, code)
            self.members.append(self._start(member.number))
            self.members[-1].go()
        return bool(self.members)

    def progress(self) -> None:
        """A trial has got further: whoever dies now is the first again."""
        self._deaths = dict.fromkeys(self._deaths, 0)

    def end(self, number: int) -> None:
        """Pass a signal on, and wait until the workers have saved their trials."""
        for member in self.members:
            member.send(number)
        self.close()

    def close(self, finished: bool = False) -> None:
        """Leave no worker behind: without its supervisor each ends by itself."""
        self._ended = True
        for member in self.members:
            member.pipe.close()
            if finished:  # it has nothing to save
                member.send(signal.SIGKILL)
        for member in self.members:
            member.wait(PATIENCE)
            member.clear_away()
        self.members = []

    def _start(self, number: int) -> WorkerProcess:
        # The storage may have a password, which a command line would show to everybody on the machine.
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), STORAGE_VARIABLE: self.url}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[number % len(self._gpus)]
        stdin, pipe = context().Pipe(duplex=False)
        words, stderr = context().Pipe(duplex=False)
        with stdin, stderr:
            process = start_worker(WorkerConfig(self.study, number, self.threads, environment, stdin, stderr))
        member = WorkerProcess(number, process, pipe)
        member.reader = threading.Thread(target=self._read, args=(member, words), daemon=True)
        member.reader.start()
        return member

    def _read(self, member: WorkerProcess, words: Connection) -> None:
        """Hand on what a worker has to say to people, once if several say the same."""
        with words, os.fdopen(os.dup(words.fileno()), errors="replace") as lines:
            for line in map(str.rstrip, lines):
                member.last.append(line)
                said = line.removeprefix("lit-mnist: ")
                if said != line and not said.startswith(("error: ", "stopped by ")) and said not in self._said:
                    self._said.add(said)
                    note(said)

    def _count_death(self, member: WorkerProcess, code: int) -> None:
        kind = "kill" if code < 0 else "release" if code == ReleasedError.exit_code else "error"
        self._deaths[kind] += 1
        if self._deaths[kind] >= MOST_DEATHS[kind]:
            said = next((line for line in reversed(member.last) if line.startswith(ERROR)), "")
            why = said.removeprefix(ERROR) or (
                member.last[-1] if code > 0 and member.last else f"exit code {code}"
            )
            raise UserError(f"workers die and no trial gets any further; the last one: {why}")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name and name != "-1"]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
