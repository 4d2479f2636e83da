"""A run's entries on disk, on their way to the tracking store.

Everything that a run tells is written here first, one JSON line an entry, and the sender is a reader of this file:
what a process wrote outlives it. Sending an entry twice does no harm, for MLflow drops a point that it has already
(same name, step, time and value), and the time of each is kept here.
"""

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_mnist.errors import UserError

Entry = dict[str, Any]
Point = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""

MAIN = "spool"
"""The name of a run's own spool, as opposed to that of somebody who looks at the run."""
DAMAGED = "damaged line"


class Journal:
    """The entries in FOLDER/NAME.jsonl, and in FOLDER/NAME.sent how far the store has taken them.

    One process may write at a time, from any of its threads. What a crash has torn off at the file's end is left
    out by readers, and cut off by the next writer.
    """

    def __init__(self, folder: Path, name: str = MAIN, on_full: Callable[[], None] = lambda: None) -> None:
        self.folder, self.name, self.on_full = folder, name, on_full
        self.full = False
        """Whether the disk was found to be full; nothing but reserved entries is taken from then on."""
        self._file: int | None = None
        self._end = 0
        self._sent: int | None = None
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The file of entries."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def outbox(self) -> Path:
        """Where files wait that belong to entries and to nobody else."""
        return self.folder / ("outbox" if self.name == MAIN else f"{self.name}.outbox")

    @property
    def refused(self) -> Path:
        """The file of entries that the store will never take; it is there only if there are some."""
        return self.folder / f"{self.name}.refused"

    @property
    def sent(self) -> int:
        """The byte up to which the store has taken everything."""
        if self._sent is None:
            try:
                self._sent = int(self._mark.read_text())
            except (OSError, ValueError):
                self._sent = 0
        # After a power cut the file may be shorter than it was.
        return min(self._sent, self.path.stat().st_size) if self.path.exists() else 0

    @property
    def _mark(self) -> Path:
        return self.folder / f"{self.name}.sent"

    def append(self, entry: Entry, reserved: bool = False) -> None:
        """Write an entry, which survives the process from then on.

        Args:
            entry: What to write; its `kind` says what it is.
            reserved: Write it even when the disk was full, into the room that `on_full` has made.

        Raises:
            UserError: it cannot be written.

        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                if self.full and not reserved:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._write(line)
            except OSError as error:
                if not self.full and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self.full = True
                    self.on_full()
                raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def sync(self) -> None:
        """Return when what was written would survive a power cut, too.

        Raises:
            UserError: the disk does not take it.

        """
        with self._lock:
            try:
                if self._file is not None:
                    os.fsync(self._file)
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def entries(self, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """The entries from byte `start` on, each with the byte at which it ends."""
        for end, line in self._lines(start):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            yield end, entry if isinstance(entry, dict) else {"kind": DAMAGED}

    def advance(self, end: int) -> None:
        """Remember that the store has taken everything up to byte `end`."""
        self._sent = end
        with contextlib.suppress(OSError):  # else it is sent once more, which does no harm
            replace_text(self._mark, str(end))

    def waiting(self) -> int:
        """How many entries the store has not taken."""
        return sum(1 for _ in self._lines(self.sent))

    def is_sent(self) -> bool:
        """Whether the store has taken everything."""
        return next(self._lines(self.sent), None) is None

    def points(self, metric: str | None = None) -> Iterator[Point]:
        """Every metric point, or those of one metric, sent or not, in the order of writing."""
        sign = b'"points"' if metric is None else json.dumps(metric).encode()  # reading a line takes longest
        for _, line in self._lines(0):
            if sign in line:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    for name, value, at, step in json.loads(line)["points"]:
                        if metric in (None, name):
                            yield name, value, at, step

    def status(self) -> str | None:
        """The run's last status in here, sent or not."""
        found = None
        for _, line in self._lines(0):
            if b'"status"' in line:
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    found = entry["status"] if entry.get("kind") == "status" else found
        return found

    def seed(self, points: Iterable[Point]) -> None:
        """Begin with points that the store has already."""
        text = "".join(json.dumps({"kind": "metrics", "points": [point]}) + "\n" for point in points)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        # In this order: a crash between leaves no file that looks like all there is.
        self.advance(len(text))
        temporary.replace(self.path)

    def remove(self) -> None:
        """Remove every file of this spool, refused entries aside."""
        self.close()
        for path in (self.path, self._mark):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.outbox, ignore_errors=True)

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
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

    def _write(self, line: bytes) -> None:
        if self._file is None:
            self._open()
        assert self._file is not None
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._end = sum(len(line) for _, line in self._lines(0))
        os.ftruncate(self._file, self._end)
        # What a power cut took had been sent, maybe: no reason to skip what is written in its place.
        if self.sent == self._end != self._sent:
            self.advance(self._end)


def replace_text(path: Path, text: str) -> None:
    """Write `text` as the file `path`, which at each moment is the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
