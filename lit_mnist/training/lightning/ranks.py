"""Several processes that train one network: they act as one, and end as one."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import distributed

from lit_mnist.errors import Interrupted, UserError

RANK_0 = "LIT_MNIST_RANK_0"
"""Environment variable: process id and run of the rank 0 that has started a process."""


class RankConsensus:
    """What any rank has heard of, known to all ranks one step later, without a wait for it."""

    def __init__(self, trainer: Trainer | None = None) -> None:
        self._shared = trainer is not None and trainer.world_size > 1
        self._group: Any = None
        self._word = torch.zeros(2, dtype=torch.int64)
        self._work: distributed.Work | None = None

    def start(self) -> None:
        """Open a channel of its own, on the CPU whatever the devices are, so that no device is waited for."""
        if self._shared:
            self._group = distributed.new_group(backend="gloo")

    def reached(self, signal: int | None, due: bool) -> tuple[int | None, bool]:
        """The largest signal, and whether a checkpoint was due, on any rank at the step before."""
        received, is_due = 0, False
        if self._work is not None:
            self._work.wait()
            received, is_due = int(self._word[0]), bool(self._word[1])
        self._word = torch.tensor([signal or 0, int(due)], dtype=torch.int64)
        self._work = distributed.all_reduce(
            self._word, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        return received or None, is_due


@contextmanager
def leading(run_id: str) -> Iterator[None]:
    """What rank 0 does its work in: the processes that it starts learn whom they follow, and in which run."""
    os.environ[RANK_0] = f"{os.getpid()} {run_id}"
    try:
        yield
    finally:
        del os.environ[RANK_0]


def led_run() -> str | None:
    """The run of the rank 0 that started this process, which ends with it from now on; None where none did."""
    if RANK_0 not in os.environ:
        return None
    leader, run_id = os.environ[RANK_0].split()
    threading.Thread(target=_leave_with, args=(int(leader),), daemon=True).start()
    return run_id


@contextmanager
def following() -> Iterator[None]:
    """What a rank other than 0 does its work in: rank 0 speaks for it.

    An exit code other than 0 would let Lightning kill rank 0 before that has written down how training ended.
    """
    with suppress(Interrupted, UserError):
        yield


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error says that another process of the training is not there any more."""
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or "gloo" in text or "connection closed by peer" in text


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
