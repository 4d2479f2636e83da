"""A job's folder `mlruns/jobs/NAME`, and calls of SLURM's commands."""

import json
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from lit_mnist.errors import UserError
from lit_mnist.terminal import note
from lit_mnist.tracking.journal.journal import replace_text

RECORD, SCRIPT, CODE = "job.json", "job.sh", "code"
ATTEMPTS, PAUSE = 3, 5.0
"""Number of attempts to reach the SLURM controller, and the seconds between them."""
NO_ANSWER = ("timed out", "Unable to contact slurm controller", "Zero Bytes were transmitted")
"""Error messages of SLURM's commands if the controller is busy (after MessageTimeout, 10 s by default) or down."""


@dataclass
class Job:
    """The content of `job.json`.

    Attributes:
        name: The job's name; also the key of its run, so that submitting the same name again resumes the run.
        command: The arguments of `lit-mnist` that the job runs.
        study: The name of the study, for a sweep; None otherwise.
        commit: The git commit of the code.
        digest: A hash of the code, including uncommitted changes.
        submitted: Time of submission in seconds since 1970.
        restarts: How often the job may be requeued.
        ids: SLURM's ids of the job, one for each submission, the newest last.
    """

    name: str
    command: list[str]
    study: str | None = None
    commit: str = ""
    digest: str = ""
    submitted: float = 0.0
    restarts: int = 0
    ids: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write it to the job's folder."""
        # Atomically, since `lit-mnist jobs` may read it at the same time.
        replace_text(folder / RECORD, json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class QueueEntry:
    """A job or an array task in the output of `squeue`."""

    id: str
    state: str
    elapsed: str
    node: str
    reason: str
    restarts: int


def jobs_folder(home: Path) -> Path:
    """The folder of all jobs' folders, in the project's `mlruns` folder `home`."""
    return home / "jobs"


def read_job(folder: Path) -> Job | None:
    """The job of that folder; None if its record is missing or cannot be read."""
    try:
        found = json.loads((folder / RECORD).read_text())
        # Fields of later versions are ignored, so that this version can list their jobs.
        known = {item.name for item in fields(Job)}
        return Job(**{key: value for key, value in found.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def queue(ids: Sequence[str]) -> list[QueueEntry]:
    """SLURM's entries of these jobs, as far as it still has them; one entry per array task.

    Raises:
        UserError: SLURM is not available.

    """
    if not ids:
        return []
    # `squeue --jobs` fails if SLURM no longer has one of the ids, so all jobs of this user are listed and
    # filtered. %F array id, %K task, %T state, %M elapsed, %N node, %r reason.
    output = run_slurm(
        "squeue", "--me", "--noheader", "--array", "--states", "all", "--format", "%F|%K|%T|%M|%N|%r"
    )
    found = []
    for line in output.splitlines():
        # A job without an array has N/A as its task.
        base, task, state, elapsed, node, reason = line.split("|")
        # `base` is the array's id for each of its tasks, as in `ids`.
        if base in ids:
            restarts = None
            name = base if task == "N/A" else f"{base}_{task}"
            # squeue does not show the number of restarts. SLURM may have removed the job in between. Only one
            # attempt, since with an unreachable controller each job of the list would take minutes.
            with suppress(UserError):
                restarts = re.search(r"\bRestarts=(\d+)", run_slurm("scontrol", "show", "job", name, attempts=1))
            found.append(QueueEntry(name, state, elapsed, node, reason, int(restarts[1]) if restarts else 0))
    return found


def flag_value(command: Sequence[str], flag: str) -> str | None:
    """The last value of `flag` in the command, as `--flag value` or `--flag=value`; None if it is missing."""
    found = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


class BusyControllerError(UserError):
    """The SLURM controller has not answered, but may have executed the request."""


def run_slurm(program: str, *arguments: str, attempts: int = ATTEMPTS) -> str:
    """Run one of SLURM's commands and return its output; tries again if the controller is busy or restarting.

    Args:
        program: The command.
        arguments: Its arguments.
        attempts: Maximum number of attempts; must be 1 for requests that must not be repeated.

    Raises:
        BusyControllerError: the controller does not answer.
        UserError: the command is not installed, or fails for another reason.

    """
    for attempt in range(1, attempts + 1):
        try:
            done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30, check=False)
            # SLURM writes errors to stderr, and for some commands partly to stdout.
            said = " ".join((done.stderr or done.stdout).split())
        except FileNotFoundError:
            raise UserError(
                f"there is no `{program}` here: this command needs a machine of a SLURM cluster"
            ) from None
        except subprocess.TimeoutExpired:
            said = "no answer within 30 s"
        else:
            if not done.returncode:
                return done.stdout
            # Other errors, such as a wrong partition, are permanent.
            if not any(text in said for text in NO_ANSWER):
                raise UserError(f"`{program}` failed: {said}")
        if attempt < attempts:
            note(f"the SLURM controller does not answer `{program}`: asking again")
            time.sleep(PAUSE)
    raise BusyControllerError(f"the SLURM controller does not answer `{program}` ({said}): try again later")
