"""A run's folder on this machine: the record of the run, locks, and unsent data."""

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
from lit_mnist.slurm import this_job
from lit_mnist.tracking.journal.journal import MAIN, Journal, replace_text
from lit_mnist.tracking.process import shown_arguments, this_boot, this_host, this_process
from lit_mnist.tracking.store import Store, local_uri

RECORD, CONFIG = "run.json", "config.yaml"
OFFLINE_ID = "offline_id"
"""The tag with the id that a run had before it was registered in a store."""
RESERVED_BYTES = 256 * 1024
"""Bytes reserved in a run's folder, so that its last entries can be written to a full disk."""


@dataclass
class Record:
    """The content of `run.json`, with which a run can be found without a store, and registered in one."""

    id: str
    experiment: str
    name: str | None = None
    uri: str | None = None
    """URI of the tracking store, without a password; None for the project's own, see `Store.portable_uri`."""
    offline: bool = False
    """True while the run is not registered in any store."""
    artifact_uri: str = ""
    start_time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """In milliseconds since 1970, as in MLflow."""
    argv: list[str] = field(default_factory=shown_arguments)
    """Arguments of the process that last worked on the run, without the program's name."""
    host: str = field(default_factory=this_host)
    process: str = field(default_factory=this_process)
    boot: str = field(default_factory=this_boot)
    job: str = field(default_factory=this_job)
    """SLURM job of that process as ID.RESTARTS; empty outside SLURM."""
    key: str | None = None
    """The name by which `fit --key` finds the run."""
    offline_id: str | None = None
    """The id that the run had before it was registered in a store."""

    def write(self, folder: Path) -> None:
        """Write it to the run's folder."""
        # Redacted here too, since values may come from a file of an earlier version, which stored passwords.
        values = asdict(self) | {
            "uri": self.uri and redact_urls(self.uri),
            "artifact_uri": redact_urls(self.artifact_uri),
        }
        replace_text(folder / RECORD, json.dumps(values, indent=1))

    def is_called(self, beginning: str) -> bool:
        """True if the run's current id or its former offline id begins with `beginning`."""
        return any(name is not None and name.startswith(beginning) for name in (self.id, self.offline_id))

    def store(self, current: Store) -> Store:
        """The store that the run belongs to.

        Args:
            current: The store in use; it is returned if it differs from the record only in the password, which the
                record does not contain.

        """
        # A run belongs to the store in which it was created, even if MLFLOW_TRACKING_URI is different now.
        uri = self.uri or local_uri(current.home)
        return current if self.offline or redact_urls(uri) == current.name else Store(uri, current.home)


def read_record(folder: Path) -> Record | None:
    """The content of the folder's `run.json`; None if it is missing or cannot be read."""
    try:
        found = json.loads((folder / RECORD).read_text())
        # Fields of later versions are ignored, so that this version can read their runs.
        known = {key: found[key] for key in found.keys() & {f.name for f in fields(Record)}}
        # Version 0.1 did not write these fields; the defaults, which describe this process, would be wrong.
        return Record(**{"boot": "", "job": "", **known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def run_folders(home: Path) -> list[Path]:
    """The folders of all runs that have one in the project's `mlruns` folder `home`."""
    runs = home / "runs"
    return sorted(runs.glob("[!.]*/")) if runs.is_dir() else []


def records(home: Path) -> list[tuple[Path, Record]]:
    """The folders of runs that have a record, each with its record."""
    return [(path, record) for path in run_folders(home) if (record := read_record(path)) is not None]


def journals(folder: Path) -> list[Journal]:
    """All journals in the folder, starting with that of the run's fit."""
    names = sorted((path.stem for path in folder.glob("*.jsonl")), key=lambda name: (name != MAIN, name))
    return [Journal(folder, name) for name in names]


def has_unsent(folder: Path) -> bool:
    """True if any entry in the folder was not sent."""
    # In all journals, since the metrics of a test may be unsent too.
    return not all(journal.is_sent() for journal in journals(folder))


def remove_if_done(folder: Path) -> bool:
    """Remove the folder unless it has unsent or refused entries; returns True if it was removed."""
    # Refused entries exist nowhere else.
    if any(not journal.is_sent() or journal.refused.exists() for journal in journals(folder)):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def upgrade_config(path: Path) -> Path:
    """Rewrite a `config.yaml` of version 0.1.0, which called the image shape `picture_shape`; return its path."""
    text = path.read_text()
    if "picture_shape:" in text:
        replace_text(path, text.replace("picture_shape:", "image_shape:"))
    return path


class BusyError(UserError):
    """Another process works on the run."""


class FolderLock:
    """A lock that excludes other processes from the same run; the system frees it when the process dies.

    Args:
        folder: The run's folder, created if it is missing.
        name: The journal that is written to.

    Raises:
        BusyError: another process holds the lock.

    """

    def __init__(self, folder: Path, name: str = MAIN) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Each journal has its own lock, so that a run can be measured during its fit.
        self.path = folder / (".lock" if name == MAIN else f".{name}.lock")
        # thread_local=False: the lock may be released by a different thread than the one that acquired it.
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
        # The file stays. If it were removed, a waiting process and a later one could each lock a different file.
        self._lock.release()


class ReservedSpace:
    """A file that keeps some room on the disk; `free` gives it back when the disk is full."""

    def __init__(self, folder: Path) -> None:
        # The name that version 0.1 gave it: a folder of that version has the file already.
        self.path = folder / ".ballast"
        with contextlib.suppress(OSError):  # the run's first real write reports a disk that is full already
            if not self.path.exists():
                with self.path.open("wb") as file:
                    file.write(os.urandom(RESERVED_BYTES))  # random: a file system may compress anything else

    def free(self) -> None:
        """Give the room back."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def is_at_work(folder: Path) -> bool:
    """True if a process works on the run."""
    try:
        with FolderLock(folder):
            return False
    except BusyError:
        return True
    except OSError:  # no lock can be created in this folder, so no process can be working in it
        return False
