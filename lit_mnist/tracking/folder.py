"""A run's folder on this machine: who it is, who works on it, and what in it is still to be sent."""

import contextlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from lit_mnist.errors import UserError
from lit_mnist.redaction import redact_urls
from lit_mnist.tracking.journal.journal import MAIN, Journal, replace_text
from lit_mnist.tracking.process import shown_arguments, this_boot, this_host, this_process
from lit_mnist.tracking.store import Store, local_uri

RECORD, CONFIG = "run.json", "config.yaml"
BALLAST = 256 * 1024
"""Bytes kept aside, so that a full disk still takes the news of it."""


@dataclass
class Record:
    """What `run.json` says: enough to find the run without a store, and to make it in one."""

    id: str
    experiment: str
    name: str | None = None
    uri: str | None = None
    """Of the tracking store, without a password; None for the project's own database, wherever the project is."""
    offline: bool = False
    """Whether no store knows the run yet."""
    artifact_uri: str = ""
    start_time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """In milliseconds since 1970, as MLflow has it."""
    argv: list[str] = field(default_factory=shown_arguments)
    """The arguments of the process that worked on it last, without the program's name."""
    host: str = field(default_factory=this_host)
    process: str = field(default_factory=this_process)
    boot: str = field(default_factory=this_boot)
    offline_id: str | None = None
    """The id it had before a store knew it."""

    def write(self, folder: Path) -> None:
        """Write it to the run's folder."""
        # The fields themselves may come from a file of an earlier version, which kept passwords.
        values = asdict(self) | {
            "uri": self.uri and redact_urls(self.uri),
            "artifact_uri": redact_urls(self.artifact_uri),
        }
        replace_text(folder / RECORD, json.dumps(values, indent=1))

    def is_called(self, beginning: str) -> bool:
        """Whether an id that it has or had begins so."""
        return any(name is not None and name.startswith(beginning) for name in (self.id, self.offline_id))

    def store(self, current: Store) -> Store:
        """The store that the run belongs to; `current` also where the record lacks only its password."""
        uri = self.uri or local_uri(current.home)
        return current if self.offline or redact_urls(uri) == current.name else Store(uri, current.home)


def read_record(folder: Path) -> Record | None:
    """What the folder's `run.json` says; None where there is none that reads."""
    try:
        found = json.loads((folder / RECORD).read_text())
        known = {key: found[key] for key in found.keys() & {f.name for f in fields(Record)}}
        return Record(**{"boot": "", **known})  # earlier versions did not write it, and it is not this process's
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def run_folders(home: Path) -> list[Path]:
    """The folder of every run that has one."""
    runs = home / "runs"
    return sorted(runs.glob("[!.]*/")) if runs.is_dir() else []


def local_folder(run_id: str, home: Path) -> Path | None:
    """The folder of the run whose id is, was while offline, or uniquely begins with `run_id`; None without one."""
    folders = run_folders(home)
    found = [path for path in folders if run_id and path.name.startswith(run_id)]
    if not found and run_id:
        records = ((path, read_record(path)) for path in folders)
        found = [path for path, record in records if record and record.is_called(run_id)]
    return found[0] if len(found) == 1 else None


def spools(folder: Path) -> list[Journal]:
    """Every spool in the folder, the run's own first."""
    names = sorted((path.stem for path in folder.glob("*.jsonl")), key=lambda name: (name != MAIN, name))
    return [Journal(folder, name) for name in names]


def has_unsent(folder: Path) -> bool:
    """Whether an entry in the folder has not been sent."""
    return not all(spool.is_sent() for spool in spools(folder))


def remove_if_done(folder: Path) -> bool:
    """Remove the folder unless something in it has not been sent or was refused; returns whether it is gone."""
    if any(not spool.is_sent() or spool.refused.exists() for spool in spools(folder)):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


class BusyError(UserError):
    """Another process works on the same."""


class FolderLock:
    """Keeps other processes from working on the same run; freed by the system when the process dies.

    Args:
        folder: The run's folder, made where it is missing.
        name: The spool that is worked on.

    Raises:
        BusyError: another process has it.

    """

    def __init__(self, folder: Path, name: str = MAIN) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / (".lock" if name == MAIN else f".{name}.lock")
        self._lock = FileLock(self.path, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            record = read_record(folder)
            who = f" (pid {record.process.partition('@')[0]} on {record.host})" if record and name == MAIN else ""
            raise BusyError(f"run {folder.name} is being worked on by another process{who}") from None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class ReservedSpace:
    """Room on the disk that a run sets aside, and gives back when the disk is full."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".ballast"
        with contextlib.suppress(OSError):
            if not self.path.exists():
                with self.path.open("wb") as file:
                    file.write(os.urandom(BALLAST))  # what does not compress takes room on every file system

    def drop(self) -> None:
        """Give the room back."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def is_at_work(folder: Path) -> bool:
    """Whether a process works on the run."""
    try:
        with FolderLock(folder):
            return False
    except BusyError:
        return True
    except OSError:  # nobody can work in a folder that takes no lock
        return False
