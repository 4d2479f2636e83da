"""A run's write-ahead journal: every entry is first written to a file, and then sent to the tracking store.

An entry is one line of JSON. The uploader reads it from the file, so entries survive the process that wrote them.
Sending an entry twice is harmless: MLflow ignores a point if it already has one with the same name, step, time and
value, and the journal stores the original time of each point.
"""

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_mnist.errors import UserError
from lit_mnist.tracking.journal.points import Point, Rewind

Entry = dict[str, Any]

# The name is that of version 0.1, whose journals are still read.
MAIN = "spool"
"""Name of the files of a fit's journal; a process that measures the run uses another name."""
DAMAGED = "damaged line"
"""The kind of an entry whose line cannot be parsed."""


class Journal:
    """The entries in FOLDER/NAME.jsonl; FOLDER/NAME.sent has the number of bytes that the store has accepted.

    One process may write at a time, from any of its threads. Readers skip an incomplete last line after a crash,
    and the next writer removes it.

    Args:
        folder: The run's folder.
        name: Name of the files.
        on_full: Called once when the disk is full, to free space for `reserved` entries.

    """

    def __init__(self, folder: Path, name: str = MAIN, on_full: Callable[[], None] = lambda: None) -> None:
        self.folder, self.name, self.on_full = folder, name, on_full
        self.full = False
        """True after the disk was full; from then on only reserved entries are written."""
        self._file: int | None = None
        # Size of the complete lines in the file, to which it is truncated after a failed write.
        self._end = 0
        # Read on first use and then cached, since only this process advances it.
        self._sent: int | None = None
        self._rewinds: list[Rewind] | None = None
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The file of entries."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def outbox(self) -> Path:
        """The folder for copies of files that have to be uploaded."""
        return self.folder / ("outbox" if self.name == MAIN else f"{self.name}.outbox")

    @property
    def refused(self) -> Path:
        """The file of entries that the store never accepts; it exists only if there are such entries."""
        return self.folder / f"{self.name}.refused"

    @property
    def sent(self) -> int:
        """The byte up to which the store has accepted everything."""
        if self._sent is None:
            try:
                self._sent = int(self._sent_path.read_text())
            except (OSError, ValueError):
                self._sent = 0
        # After a power cut the file may be shorter than it was.
        return min(self._sent, self.path.stat().st_size) if self.path.exists() else 0

    @property
    def _sent_path(self) -> Path:
        return self.folder / f"{self.name}.sent"

    def append(self, entry: Entry, reserved: bool = False) -> None:
        """Write an entry. It survives the end of the process, but not a power cut, see `sync`.

        Args:
            entry: The entry, with its type in `kind`.
            reserved: Write it even after the disk was full, into the space that `on_full` has freed.

        Raises:
            UserError: it cannot be written.

        """
        # Without spaces, since `rewinds` recognises lines by their first characters.
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                if self.full and not reserved:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if self._file is None:
                    self._open()
                # Unbuffered, so that nothing is lost if the process is killed. Without fsync, which would take
                # longer than a training step; `sync` is called before each checkpoint.
                self._write(line)
                self._rewinds = None if entry.get("kind") == "rewind" else self._rewinds
            except OSError as error:
                if not self.full and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    # Only once, even if several threads find the disk full.
                    self.full = True
                    self.on_full()
                raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def sync(self) -> None:
        """Flush all written entries to the disk, so that they survive a power cut.

        Raises:
            UserError: the data cannot be written.

        """
        with self._lock:
            try:
                if self._file is not None:
                    os.fsync(self._file)
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def entries(self, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """Yield the entries from byte `start` on, each with the byte at which it ends."""
        # A damaged line becomes an entry of the kind DAMAGED, which the writer reports and skips.
        for end, line in self._lines(start):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            yield end, entry if isinstance(entry, dict) else {"kind": DAMAGED}

    def advance(self, end: int) -> None:
        """Record that the store has accepted everything up to byte `end`."""
        # Cached first, so that this process sends nothing twice even if the disk is full.
        self._sent = end
        with contextlib.suppress(OSError):  # otherwise it is sent once more, which is harmless
            replace_text(self._sent_path, str(end))

    def waiting(self) -> int:
        """Number of entries that the store has not accepted yet."""
        return sum(1 for _ in self._lines(self.sent))

    def is_sent(self) -> bool:
        """True if the store has accepted everything."""
        return next(self._lines(self.sent), None) is None

    def points(self, metric: str | None = None) -> Iterator[Point]:
        """Yield the points of all metrics or of one, in the order of the file, without replaced points."""
        rewinds = self.rewinds()
        # Only lines with these bytes are parsed, since parsing is the slowest part.
        wanted = b'"points"' if metric is None else json.dumps(metric).encode()
        for _, line in self._lines(0):
            if wanted in line:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    for name, value, at, step in json.loads(line)["points"]:
                        point = (name, value, at, step)
                        if metric in (None, name) and not any(rewind.replaces(point) for rewind in rewinds):
                            yield point

    def last_steps(self) -> dict[str, int]:
        """The largest step of each metric."""
        steps: dict[str, int] = {}
        for name, _, _, step in self.points():
            steps[name] = max(step, steps.get(name, step))
        return steps

    def rewinds(self) -> list[Rewind]:
        """The rewinds of this run, oldest first."""
        # Cached until `append` adds one, since the uploader needs them every few seconds and the file may be long.
        if self._rewinds is None:
            found = []
            for _, line in self._lines(0):
                if line.startswith(b'{"kind":"rewind"'):
                    with contextlib.suppress(ValueError, KeyError):
                        entry = json.loads(line)
                        found.append(Rewind(entry["step"], entry["time"]))
            self._rewinds = found
        return self._rewinds

    def status(self) -> str | None:
        """The last status that was set, sent or not."""
        found = None
        for _, line in self._lines(0):
            if b'"status"' in line:
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    found = entry["status"] if entry.get("kind") == "status" else found
        return found

    def seed(self, points: Iterable[Point], rewinds: Sequence[Rewind] = ()) -> None:
        """Start the file with points and rewinds that the store already has."""
        # One entry per point is fine, since these entries are never sent.
        entries: list[Entry] = [{"kind": "metrics", "points": [point]} for point in points]
        entries += [{"kind": "rewind", "step": rewind.step, "time": rewind.time} for rewind in rewinds]
        text = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        # In this order, so that after a crash there is no incomplete file that looks complete.
        self.advance(len(text))
        temporary.replace(self.path)

    def remove(self) -> None:
        """Remove all files of this journal except that of refused entries."""
        self.close()
        for path in (self.path, self._sent_path):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.outbox, ignore_errors=True)

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield the complete lines from byte `start` on, each with the byte at which it ends."""
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    start += len(line)
                    yield start, line
        except FileNotFoundError:
            return

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # With O_APPEND, every line is written at the end.
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._end = sum(len(line) for _, line in self._lines(0))
        os.ftruncate(self._file, self._end)
        # If a power cut has removed lines that were already sent, the position of sent bytes is beyond the end of
        # the file. It is corrected, since new lines would otherwise be skipped.
        if self.sent == self._end != self._sent:
            self.advance(self._end)

    def _write(self, line: bytes) -> None:
        """Write `line` completely or not at all."""
        assert self._file is not None
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            # Part of the line may have been written to a full disk: remove it, since the next line would follow
            # it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)


def replace_text(path: Path, text: str) -> None:
    """Atomically replace the content of the file `path` by `text`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # The name that the user knows.
        raise type(error)(error.errno, error.strerror, str(path)) from error
