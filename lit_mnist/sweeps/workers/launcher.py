"""What the runner of a sweep needs of whatever runs its workers."""

from collections.abc import Callable
from typing import Protocol


class Launcher(Protocol):
    """Runs the workers of one sweep.

    `pool.WorkerPool` runs them as processes on this machine. To run them elsewhere, such as in the tasks of a
    SLURM array, write a class with these members in a file beside it and return it from `runner.make_launcher`.

    A launcher only starts and ends workers. It knows nothing of trials: each worker is `worker.run_worker`, which
    leases its trials from the study's storage, and a worker's death loses no more than the time since its trial's
    last checkpoint. `run_worker` finds the storage in its environment, begins when a line "start" arrives on its
    standard input, and ends when that input is closed, which is how it notices that the launcher has died.
    """

    workers: int
    """How many workers run at a time."""

    def start(self) -> None:
        """Let the workers begin: the study and its MLflow run exist."""

    def poll(self, has_progressed: bool, is_finished: Callable[[], bool]) -> bool:
        """Replace workers that have died; return False if none is left.

        Args:
            has_progressed: A trial has got further since the last call, which allows for some more deaths.
            is_finished: Returns True if the study is finished, so that workers need not be replaced.

        Raises:
            UserError: workers die again and again, and no trial gets any further.

        """

    def signal(self, number: int) -> None:
        """Send a signal to every worker; after SIGTERM and the like, each saves its trial and ends."""

    def close(self, kill: bool = False) -> None:
        """Wait until every worker has ended; with `kill`, end them at once, since they have nothing to save."""
