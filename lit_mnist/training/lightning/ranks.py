"""Several processes that train one model: how they meet, agree on a signal, and end together.

Rank 0 does all tracking. With `--trainer.strategy ddp` Lightning starts the other ranks by running the command
line again; on a cluster `srun` or `torchrun` starts all of them.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lit_mnist.errors import Interrupted, UserError
from lit_mnist.signals import WATCHED, SignalWatch, exit_code
from lit_mnist.slurm import allocation
from lit_mnist.terminal import note

RANK_0 = "LIT_MNIST_RANK_0"
"""Environment variable that rank 0 sets for the ranks it starts: its process id and its run's id."""
CONNECT_ATTEMPTS = 3
"""How often a rank other than 0 tries to reach rank 0, a second apart."""
PART = 4 * 2**20
"""Bytes in one message between ranks: TCPStore's limit is 8 MiB (MAX_PAYLOAD_LEN, torch 2.8)."""
HANG_TIMEOUT = 60.0
"""Seconds without a new batch after a signal, after which a process of a distributed training is killed."""


def forks_processes(trainer: Trainer) -> bool:
    """True if the Trainer's strategy forks or spawns its ranks instead of running the command line again."""
    # Forked ranks would share rank 0's journal, its lock and its thread.
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


@contextmanager
def rank_0_context(run_id: str) -> Iterator[None]:
    """The context in which rank 0 trains: the ranks that it starts inherit the run's id."""
    # Through the environment, which Lightning passes on when it runs the command line again.
    os.environ[RANK_0] = f"{os.getpid()} {run_id}"
    try:
        yield
    finally:
        del os.environ[RANK_0]


@contextmanager
def other_rank_context() -> Iterator[None]:
    """The context in which all other ranks train: it suppresses errors, since rank 0 reports them.

    If another rank ended with an exit code other than 0, Lightning would kill rank 0 before it has recorded how
    the training ended.
    """
    with suppress(Interrupted, UserError):
        yield


def run_of_rank_0() -> str | None:
    """Return the id of rank 0's run if rank 0 started this process, and end the process with rank 0; else None."""
    # A child of rank 0 has inherited the variable; rank 0 itself sets it later than this call.
    if RANK_0 not in os.environ:
        return None
    parent, run_id = os.environ[RANK_0].split()

    # If rank 0 is killed, it cannot end the ranks that it has started, and they would keep their GPUs.
    def end_with_parent() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return run_id


def is_started_rank() -> bool:
    """True if Lightning or `torchrun` has started this process as one rank of a training."""
    return RANK_0 in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


class LaunchedRanks:
    """Sends the run and the checkpoint of rank 0 to the other ranks that `srun` or `torchrun` has started.

    Otherwise each rank would search for the run itself: `--resume last` would skip the run that rank 0 works on
    and find an older one, and `--key` would find the run that rank 0 has just created. Because the checkpoint is
    sent as well, all ranks start at the same step, with or without a shared file system.
    """

    def __init__(self, rank: int, ranks: int, host: str, port: int, listen: bool) -> None:
        self.rank, self.ranks = rank, ranks
        try:
            self._store = TCPStore(host, port, is_master=listen, wait_for_workers=False)
        except distributed.DistError as error:
            wrong, reason = "listen on" if listen else "reach", " ".join(str(error).split())
            raise UserError(
                f"rank {rank} cannot {wrong} {host}:{port} ({reason}); set MASTER_ADDR and MASTER_PORT"
            ) from None

    @classmethod
    def connect(cls) -> "LaunchedRanks | None":
        """Connect this process with the other ranks; None if it is the only one, or if Lightning starts the ranks.

        Raises:
            UserError: rank 0 cannot be reached.

        """
        job = allocation()
        if job is not None and job.step and job.tasks > 1:
            # Lightning derives address and port from the job, so they are the same on all nodes.
            slurm = SLURMEnvironment()
            # Rank 0 will listen on the main port when the training starts.
            return cls(job.rank, job.tasks, slurm.main_address, slurm.main_port + 1, listen=job.rank == 0)
        if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
            rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
            # torchrun already has a store at that port, unless its kind of rendezvous does not share one with
            # ranks.
            listens = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            where = (os.environ["MASTER_ADDR"], port if listens else port + 1)
            return cls(rank, int(os.environ["WORLD_SIZE"]), *where, listen=not listens and rank == 0)
        return None

    @property
    def _key(self) -> str:
        # The restart count is part of the key, since torchrun keeps its store when it restarts the ranks.
        return f"lit_mnist/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"

    def send(self, message: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Send a message of plain types, and files by the names that they will have on the other ranks."""
        # The message is sent last, so that a rank that receives it finds all files.
        sizes = {}
        for name, path in files.items():
            content = path.read_bytes()
            sizes[name] = len(content)
            for start in range(0, len(content), PART):
                self._store.set(f"{self._key}/{name}/{start}", content[start : start + PART])  # type: ignore[arg-type]
        self._store.set(self._key, json.dumps({"message": message, "sizes": sizes}))

    def receive(self, folder: Path, watch: SignalWatch) -> Any:
        """Return the message of rank 0, and write its files to `folder`.

        Raises:
            Interrupted: a signal came before.
            UserError: rank 0 has ended.

        """
        try:
            # In short waits: a blocking `get` runs in C++, where Python's signal handlers do not run.
            while not self._store.check([self._key]):
                watch.check()
                time.sleep(0.2)
            received = json.loads(self._store.get(self._key))
            for name, size in received["sizes"].items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                parts = (self._store.get(f"{self._key}/{name}/{start}") for start in range(0, size, PART))
                path.write_bytes(b"".join(parts))
            self._store.add(f"{self._key}/received", 1)
        except distributed.DistError:
            raise UserError("rank 0 of this training has ended; its message says why") from None
        return received["message"]

    def wait_until_received(self, watch: SignalWatch) -> None:
        """Wait until every other rank has the message, since the store ends with rank 0.

        Raises:
            Interrupted: a signal came before.

        """
        # With a time limit, since a rank may have been killed after rank 0 has sent its message.
        end = time.monotonic() + HANG_TIMEOUT
        while self._store.add(f"{self._key}/received", 0) < self.ranks - 1 and time.monotonic() < end:
            watch.check()
            time.sleep(0.1)


class RankConsensus:
    """Shares signals and due checkpoints among the ranks, so that all of them act at the same step.

    A signal of one rank at a step reaches all ranks at the next step: the exchange runs while the step is
    computed, and no step waits for it.
    """

    def __init__(self, trainer: Trainer | None = None) -> None:
        self._is_distributed = trainer is not None and trainer.world_size > 1
        self._group: Any = None
        # [signal, due], each 0 if there is none.
        self._exchanged = torch.zeros(2, dtype=torch.int64)
        self._exchange: distributed.Work | None = None

    def start(self) -> None:
        """Open a process group for the exchange, on the CPU, so that no GPU has to be synchronised."""
        # All ranks have to call this, in the same order as other collectives.
        if self._is_distributed:
            self._group = distributed.new_group(backend="gloo")

    def reached(self, signal: int | None, due: bool) -> tuple[int | None, bool]:
        """Share this rank's signal and whether a checkpoint is due; return the maxima of the previous step."""
        received, is_due = 0, False
        if self._exchange is not None:
            # Started one step ago, and so usually complete.
            self._exchange.wait()
            received, is_due = int(self._exchanged[0]), bool(self._exchanged[1])
        # The maximum: any rank's signal counts for all.
        self._exchanged = torch.tensor([signal or 0, int(due)], dtype=torch.int64)
        self._exchange = distributed.all_reduce(
            self._exchanged, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        return received or None, is_due


def make_rendezvous_interruptible(trainer: Trainer, watch: SignalWatch) -> None:
    """Let a signal end the wait for the other ranks at the start of a distributed training.

    `init_process_group` waits in C++ for up to 30 minutes, where no Python signal handler runs: without this
    function, a training whose peers never start would ignore every signal except SIGKILL. Therefore a thread
    waits, and the main thread checks for signals.
    """
    # Only strategies with several processes have this method.
    connect = getattr(trainer.strategy, "setup_distributed", None)
    if trainer.world_size == 1 or connect is None:
        return
    errors: list[BaseException] = []

    def connect_in_thread() -> None:
        for attempt in range(1, CONNECT_ATTEMPTS + 1):
            try:
                connect()
                return
            except BaseException as error:
                # Before rank 0 listens, another program may use the port and close the connection, so other ranks
                # try again.
                if trainer.is_global_zero or attempt == CONNECT_ATTEMPTS:
                    errors.append(error)
                    return
                time.sleep(1)

    def setup_distributed() -> None:
        # The thread of an interrupted wait stays in C++ until the process ends.
        thread = threading.Thread(target=connect_in_thread, name="lit-mnist-rendezvous", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            watch.check()
        if errors and not trainer.is_global_zero:
            # `other_rank_context` would end this rank with exit code 0, and rank 0 would wait for it for 30
            # minutes.
            note(f"rank {trainer.global_rank} cannot reach rank 0: {' '.join(str(errors[0]).split())}")
            os._exit(1)
        if errors:
            raise errors[0]

    trainer.strategy.setup_distributed = setup_distributed  # type: ignore[attr-defined]


class HangGuard(Callback):
    """Kills this process, and the ranks it has started, if a signal does not end the training.

    When one rank hangs, the others wait for it in a collective operation in C++, where no Python signal handler
    runs, and would keep their GPUs until they are killed by hand. Here a thread receives the signal by
    `signal.set_wakeup_fd`, which works whatever the main thread does.

    Args:
        before_exit: Called before the process is killed.

    """

    def __init__(self, before_exit: Callable[[], object] = lambda: None) -> None:
        self.before_exit = before_exit
        self._last_batch = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Note the time: this rank does not hang."""
        self._last_batch = time.monotonic()

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Note the time: this rank does not hang."""
        self._last_batch = time.monotonic()

    @contextmanager
    def active(self, trainer: Trainer) -> Iterator[None]:
        """Guard the code inside; to be used in the main thread."""
        # Python's C code writes a signal's number to one socket at once; the thread reads the other.
        ours, python = socket.socketpair()
        python.setblocking(False)
        previous = signal.set_wakeup_fd(python.fileno(), warn_on_full_buffer=False)
        closing = threading.Event()
        arguments = (trainer, ours, closing)
        thread = threading.Thread(target=self._run, args=arguments, name="lit-mnist-hang-guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closing.set()
            signal.set_wakeup_fd(previous)
            python.close()  # ends the thread's recv
            thread.join()
            ours.close()

    def _run(self, trainer: Trainer, signals: socket.socket, closing: threading.Event) -> None:
        # Other signals, such as SIGCHLD, are received here as well.
        number = 0
        while number not in WATCHED:
            received = signals.recv(1)
            if not received:
                return
            number = received[0]
        # The time counts from the signal, or from the start of a later batch of training or validation.
        start = time.monotonic()
        while not closing.wait(0.2):
            if time.monotonic() - max(start, self._last_batch) > HANG_TIMEOUT:
                break
        else:
            return
        name = signal.Signals(number).name
        note(f"{name} came, and no batch ended within {HANG_TIMEOUT:.0f} s: a process hangs, and all are killed")
        # The process has to end even if this fails.
        with suppress(Exception):
            self.before_exit()
        # Kill the ranks that Lightning has started; srun kills its own (--kill-on-bad-exit).
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.kill()
        os._exit(exit_code(number))


def is_lost_peer(error: BaseException) -> bool:
    """True if the error says that another process of the training has ended."""
    # gloo raises a plain RuntimeError, NCCL a DistError.
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or "gloo" in text or "connection closed by peer" in text
