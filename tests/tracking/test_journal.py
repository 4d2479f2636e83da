"""Entries that were written to a journal can be read, whatever happens to the process or the disk in between."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lit_mnist.errors import UserError
from lit_mnist.tracking.journal.journal import Journal

ENTRIES = [{"kind": "text", "text": "line\nbreak, ümlaut, \ud800", "path": "a"}] + [
    {"kind": "metrics", "points": [["loss", step / 2, 1000 + step, step]]} for step in range(5)
]
WRITER = """
import sys
from pathlib import Path
from lit_mnist.tracking.journal.journal import Journal

journal = Journal(Path(sys.argv[1]))
for step in range(10**9):
    journal.append({"kind": "metrics", "points": [["loss", 0.5, step, step]]})
    if step == 1000:
        print("written", flush=True)
"""


def _write_entries(folder: Path) -> Journal:
    journal = Journal(folder)
    for entry in ENTRIES:
        journal.append(entry)
    return journal


def _read(journal: Journal, start: int = 0) -> list[dict[str, object]]:
    return [entry for _, entry in journal.entries(start)]


def test_entries_are_read_as_they_were_written(tmp_path: Path) -> None:
    journal = _write_entries(tmp_path)
    assert _read(journal) == _read(Journal(tmp_path)) == ENTRIES
    assert journal.waiting() == len(ENTRIES) and not journal.is_sent() and journal.status() is None
    assert [(name, value) for name, value, _, _ in journal.points()] == [("loss", step / 2) for step in range(5)]


def test_nan_and_infinity_are_stored(tmp_path: Path) -> None:
    Journal(tmp_path).append(
        {"kind": "metrics", "points": [["a", math.nan, 1, 1], ["b", math.inf, 1, 1], ["c", -math.inf, 1, 1]]}
    )
    nan, *infinite = [value for _, value, _, _ in Journal(tmp_path).points()]
    assert math.isnan(nan) and infinite == [math.inf, -math.inf]


def test_the_mark_of_what_was_sent_is_stored(tmp_path: Path) -> None:
    journal = _write_entries(tmp_path)
    ends = [end for end, _ in journal.entries()]
    journal.advance(ends[2])
    again = Journal(tmp_path)
    assert again.sent == ends[2] and again.waiting() == 3 and _read(again, again.sent) == ENTRIES[3:]
    again.advance(ends[-1])
    assert Journal(tmp_path).is_sent() and Journal(tmp_path).waiting() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spool.jsonl", "spool.sent"]


@pytest.mark.parametrize("mark", ["", "no number", "-"])
def test_with_a_damaged_mark_everything_is_sent_again(mark: str, tmp_path: Path) -> None:
    _write_entries(tmp_path)
    (tmp_path / "spool.sent").write_text(mark)
    assert Journal(tmp_path).sent == 0


def test_a_mark_beyond_the_end_does_not_hide_later_entries(tmp_path: Path) -> None:
    journal = _write_entries(tmp_path)
    journal.advance(journal.path.stat().st_size)
    os.truncate(journal.path, 0)  # as a power cut may
    reopened = Journal(tmp_path)
    assert reopened.sent == 0
    reopened.append(ENTRIES[0])
    assert _read(reopened, reopened.sent) == ENTRIES[:1]


def test_a_torn_last_line_is_ignored_and_then_cut_off(tmp_path: Path) -> None:
    path = _write_entries(tmp_path).path
    os.truncate(path, path.stat().st_size - 3)
    assert _read(Journal(tmp_path)) == ENTRIES[:-1] and Journal(tmp_path).waiting() == len(ENTRIES) - 1
    journal = Journal(tmp_path)
    journal.append(ENTRIES[0])
    assert _read(journal) == [*ENTRIES[:-1], ENTRIES[0]]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_an_unreadable_line_hides_none_after_it(tmp_path: Path) -> None:
    journal = _write_entries(tmp_path)
    with journal.path.open("a") as file:
        file.write("\0\0\0\0\n[1]\n")
    journal.append(ENTRIES[0])
    damaged = {"kind": "damaged line"}
    assert _read(journal) == [*ENTRIES, damaged, damaged, ENTRIES[0]] and len(list(journal.points())) == 5


def test_several_threads_can_write_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def write(number: int) -> None:
        for step in range(300):
            journal.append({"kind": "metrics", "points": [[f"m{number}", 0.5, step, step]]})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = list(journal.points())
    assert [[p[3] for p in written if p[0] == f"m{n}"] for n in range(4)] == [list(range(300))] * 4


def test_entries_survive_the_death_of_their_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    steps = [step for _, _, _, step in Journal(tmp_path).points()]
    assert steps == list(range(len(steps))) and len(steps) > 1000


def test_a_failed_write_is_undone_and_reported_in_one_line(tmp_path: Path) -> None:
    journal = _write_entries(tmp_path)
    size = journal.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        with pytest.raises(UserError, match=f"^cannot write {journal.path}: File too large$"):
            journal.append(ENTRIES[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert journal.path.stat().st_size == size
    journal.append(ENTRIES[0])
    assert _read(journal) == [*ENTRIES, ENTRIES[0]]


def test_a_seeded_journal_has_nothing_to_send(tmp_path: Path) -> None:
    points = [("loss", 0.5, 10, 1), ("loss", 0.25, 20, 2)]
    journal = Journal(tmp_path)
    journal.seed(points)
    assert Journal(tmp_path).is_sent() and list(Journal(tmp_path).points()) == points
    journal.append(ENTRIES[0])
    assert _read(journal, journal.sent) == ENTRIES[:1]
