"""The interface between the runner of a sweep and the code that starts and ends its workers."""

from collections.abc import Callable
from typing import Protocol


class Launcher(Protocol):
    """Runs the workers of one sweep.

    `pool.WorkerPool` runs them as processes on this machine. To run them elsewhere, such as in the tasks of a
    SLURM array, write a class with these members in a file next to `pool.py` and return it from
    `runner.make_launcher`.

    A launcher only starts and ends workers and does not handle trials. Each worker runs `worker.run_worker`, which
    leases its trials from the study's storage. If a worker dies, only the time since its trial's last checkpoint
    is lost. `run_worker` reads the storage from its environment, begins when a line "start" arrives on its
    standard input, and ends when that input is closed, which happens when the launcher dies.
    """

    workers: int
    """How many workers run at a time."""

    def start(self) -> None:
        """Let the workers begin: the study and its MLflow run exist."""

    def poll(self, has_progressed: bool, is_finished: Callable[[], bool]) -> bool:
        """Replace workers that have died; return False if no worker is left.

        Args:
            has_progressed: True if a trial has progressed since the last call, which resets the count of deaths.
            is_finished: Returns True if the study is finished, so that workers need not be replaced.

        Raises:
            UserError: too many workers have died without progress of any trial.

        """

    def signal(self, number: int) -> None:
        """Send a signal to every worker; after SIGTERM and the like, each saves its trial and ends."""

    def close(self, kill: bool = False) -> None:
        """Wait until every worker has ended; with `kill`, end them at once, since they have nothing to save."""
