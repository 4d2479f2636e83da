"""The storage of studies survives processes that are killed in the middle of a write."""

import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest

from lit_mnist.errors import UserError
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.study.locks import study_lock
from lit_mnist.sweeps.study.storage import open_storage, open_study, study_names


def make_study(url: str, name: str = "first") -> optuna.Study:
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name=name)
    return open_study(storage, name)


def test_a_journal_with_a_torn_last_line_loses_only_that_line(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.journal"
    study = make_study(str(path))
    study.set_user_attr("kept", 1)
    study.set_user_attr("torn", "x" * 100)
    path.write_bytes(path.read_bytes()[:-40])
    again = open_study(open_storage(str(path)), "first")
    assert again.user_attrs == {"kept": 1}
    again.set_user_attr("written after", 2)
    assert open_study(open_storage(str(path)), "first").user_attrs == {"kept": 1, "written after": 2}


def test_a_torn_line_in_an_open_journal_is_repaired_by_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.journal"
    study = make_study(str(path))
    with path.open("ab") as file:
        file.write(b'{"op_code": 2, "worker_id": "x", "study')
    assert study.user_attrs == {}
    study.set_user_attr("next", 1)
    assert study.user_attrs == {"next": 1}
    assert open_study(open_storage(str(path)), "first").user_attrs == {"next": 1}


def test_the_locks_of_a_killed_process_are_released(tmp_path: Path) -> None:
    urls = [str(tmp_path / "journal"), f"sqlite:///{tmp_path / 'studies.db'}"]
    studies = [make_study(url) for url in urls]
    program = (
        "import os\n"
        "from lit_mnist.sweeps.study.locks import study_lock\n"
        "from lit_mnist.sweeps.study.storage import open_storage\n"
        f"journal, database = map(open_storage, {urls!r})\n"
        "with study_lock(journal, 'first'), study_lock(database, 'first'):\n"
        "    journal.wrapped._backend._lock.acquire()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -9, done.stderr
    for study in studies:
        with study_lock(storage_of(study), "first"):
            study.set_user_attr("written", True)
        assert study.user_attrs == {"written": True}


def test_the_lock_of_a_study_excludes_others_and_does_not_lock_other_studies(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "studies"))
    order: list[str] = []

    def other() -> None:
        with study_lock(open_storage(str(tmp_path / "studies")), "first"):
            order.append("second")

    with study_lock(storage, "first"):
        thread = threading.Thread(target=other)
        thread.start()
        with study_lock(storage, "another study"):
            thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg://nobody:secret@127.0.0.1:1/none", "cannot open the studies' storage .*127.0.0.1"),
        ("mysql://host/name", "take a file's path, sqlite:/// or postgresql"),
        ("nonsense://x", "take a file's path"),
        ("/proc/there/is/none", "cannot open the studies' storage"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_a_one_line_error(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_storage(url)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_the_error_for_a_misspelt_study_names_the_nearest_one(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "studies"))
    with pytest.raises(UserError, match="there is no study yet"):
        open_study(storage, "zhang")
    optuna.create_study(storage=storage, study_name="zhang_rates")
    with pytest.raises(UserError, match="did you mean zhang_rates"):
        open_study(storage, "zhang_rate")
    assert study_names(storage) == ["zhang_rates"]


def test_the_error_for_a_missing_postgres_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs psycopg: `pip install 'lit-mnist\[postgres\]'`"):
        open_storage("postgresql://127.0.0.1:1/none")
