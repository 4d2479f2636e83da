"""Heartbeats of runs, and whether the process that works on a RUNNING run is alive, as far as this host can know.

Proofs of death, the strongest first:

1. The run's folder is here and says that the run has ended.
2. The process ran on this host and is gone.
3. It ran on this kernel (in another container or under another host name), and its lock on the folder is free.
4. Its SLURM job has ended, or waits to be started again.
5. Its heartbeat is older than HEARTBEAT_TIMEOUT.

A free lock on a network file system proves nothing: NFS and Lustre can be mounted such that a lock holds on one
host only.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from lit_mnist.slurm import is_gone
from lit_mnist.tracking.folder import Record, is_at_work
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.process import is_alive, same_numbering, this_boot, this_host, this_process

HEARTBEAT_INTERVAL = 30.0
"""Seconds between two heartbeats of a run."""
HEARTBEAT_TIMEOUT = 120.0
"""Seconds after which a run without a new heartbeat counts as dead.

The writer's clock is compared with the reader's. As long as they differ by less than 90 s (a cluster's clocks are
kept together; munge, for one, needs it) a living run is never taken for a dead one.
"""
HEARTBEAT = "heartbeat"
"""The tag with the time of the last heartbeat in whole seconds since 1970; also a file in the run's folder."""


class State(Enum):
    """The state of a run's process."""

    DEAD = auto()
    ALIVE = auto()
    PERHAPS = auto()
    """On another host, with a recent heartbeat."""
    UNKNOWN = auto()
    """On another host, without a heartbeat, as for a run of version 0.1."""


@dataclass(frozen=True)
class Liveness:
    """The state of a run's process, and how to report it."""

    state: State
    host: str
    process: str
    age: float = 0.0
    """Seconds since the last heartbeat; only for PERHAPS."""

    @property
    def reason(self) -> str:
        """Why the run cannot be taken over; continues a line that begins with the run's id."""
        if self.state is State.ALIVE:
            return f"is being worked on by another process (pid {self.process.partition('@')[0]} on {self.host})"
        if self.state is State.UNKNOWN:
            return f"is RUNNING on {self.host}, from where there is no heartbeat: it may be alive"
        if self.age < -HEARTBEAT_INTERVAL:
            last = f"{-self.age:.0f} s in the future (do the hosts' clocks differ?)"
        else:
            last = f"{max(self.age, 0):.0f} s ago"
        wait = f"without another it counts as dead in {HEARTBEAT_TIMEOUT - self.age:.0f} s"
        return f"may be alive on {self.host}: its last heartbeat was {last}; {wait}"


def touch_heartbeat(folder: Path) -> None:
    """Write a heartbeat to the run's folder.

    Raises:
        OSError: the folder cannot be written to.

    """
    (folder / HEARTBEAT).touch()


def heartbeat_tag() -> dict[str, str]:
    """The tag with a heartbeat of the current time."""
    return {HEARTBEAT: f"{time.time():.0f}"}


def find_liveness(folder: Path | None, record: Record | None, tags: Mapping[str, str] | None) -> Liveness:
    """Find out whether the process that works on a RUNNING run is alive.

    Args:
        folder: The run's folder on this machine, if there is one.
        record: The folder's `run.json`.
        tags: The run's tags in the store, or None if no store was used.

    """
    # Without a store, convert the record to tags.
    if tags is None:
        tags = {}
        if record is not None:
            job, _, restart = record.job.partition(".")
            tags = {"host": record.host, "process": record.process, "boot": record.boot}
            tags |= {"slurm.job": job, "slurm.restart": restart, "slurm.process": record.process}
    host, process = tags.get("host", "an unknown host"), tags.get("process", "")
    # A folder that another process wrote says nothing about this process: it may be a copy, or the run may have
    # been continued elsewhere.
    slurm = tags.get("slurm.job", "") if tags.get("slurm.process") == process else ""
    own = folder if record is not None and (record.host, record.process) == (host, process) else None

    # The strongest evidence of life: another process holds the lock.
    if process != this_process() and folder is not None and is_at_work(folder):
        return Liveness(State.ALIVE, host, process)
    # Proof of death 1: the journal has the final status, which has not reached the store.
    if own is not None and Journal(own).status() not in (None, "RUNNING"):
        return Liveness(State.DEAD, host, process)
    # Proofs 2 and 3: a process of this kernel can be looked up, or its lock must be visible.
    kernel, _, namespace = tags.get("boot", "").partition("/")
    this_kernel = this_boot().partition("/")[0]
    same_kernel = bool(this_kernel) and kernel == this_kernel
    # Two containers may have the same host name but separate process ids.
    sees_process = not (same_kernel and namespace and not same_numbering(tags["boot"], this_boot()))
    if host == this_host() or same_kernel:
        if process != this_process() and sees_process and is_alive(process):
            return Liveness(State.ALIVE, host, process)
        # A process of another container is not visible here, which alone proves nothing; but together with its
        # free lock on a folder of this kernel it does.
        if (host == this_host() and sees_process) or own is not None:
            return Liveness(State.DEAD, host, process)

    # Proof 4: the SLURM job has ended, which is known sooner than by heartbeats. A running job proves nothing,
    # since this process of it may have been killed.
    if slurm and is_gone(slurm, int(tags.get("slurm.restart") or 0)):
        return Liveness(State.DEAD, host, process)

    # Proof 5: the newest heartbeat, from the store or from the folder on a shared file system.
    heartbeats = []
    if tags.get(HEARTBEAT, "").isdecimal():
        heartbeats.append(float(tags[HEARTBEAT]))
    if own is not None and (own / HEARTBEAT).exists():
        heartbeats.append((own / HEARTBEAT).stat().st_mtime)
    # Without heartbeats, a run is never considered dead.
    if not heartbeats:
        return Liveness(State.UNKNOWN, host, process)
    age = time.time() - max(heartbeats)
    return Liveness(State.DEAD if age > HEARTBEAT_TIMEOUT else State.PERHAPS, host, process, age)
