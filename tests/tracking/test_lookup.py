"""All commands accept the same names of a run: its id, the beginning of its id, or `last`."""

from pathlib import Path

import pytest
from conftest import Cli, enter_project
from many import copy_runs

from lit_mnist.errors import UsageError
from lit_mnist.tracking.folder import OFFLINE_ID
from lit_mnist.tracking.queries.lookup import find_run, local_folder, resolve_run_id
from lit_mnist.tracking.queries.reader import ClientReader, Reader, open_reader
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store

AMBIGUOUS = [f"0000000{number}" for number in range(6)]


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory):
    """The id of the newest run of a project, in which the ids of six other runs begin with the same digits."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_project(tmp_path_factory.mktemp("lookup"), patch)
        client = connect(find_store())
        source = client.create_run("0", start_time=1000, run_name="alike").info.run_id
        copy_runs(folder / "mlruns" / "mlflow.db", source, 6, lambda i, table, row: True)
        client.set_tag(source, OFFLINE_ID, "0ff11e" * 5 + "00")
        yield client.create_run("0", run_name="newest").info.run_id


@pytest.fixture(params=["database", "client"])
def reader(request: pytest.FixtureRequest, newest: str) -> Reader:
    return open_reader(find_store()) if request.param == "database" else ClientReader(connect(find_store()))


@pytest.fixture
def project(newest: str) -> Path:
    return Path.cwd()


def test_id_beginning_offline_id_or_last_name_a_run(newest: str, reader: Reader) -> None:
    store, client = find_store(), connect(find_store())
    for text in (newest, newest[:10], "last"):
        assert resolve_run_id(store, reader, text) == newest == find_run(client, store, text).info.run_id
    for text in ("0ff11e", "0ff11e" * 5 + "00"):
        found = client.get_run(resolve_run_id(store, reader, text))
        assert found.data.tags[OFFLINE_ID].startswith(text)


def test_ambiguous_beginning_names_the_first_matches(reader: Reader) -> None:
    with pytest.raises(UsageError) as error:
        resolve_run_id(find_store(), reader, "0000000")
    line = str(error.value)
    assert line.startswith("more than one run begins with '0000000' in sqlite:///") and "\n" not in line
    assert all(f"{run_id}ccc (alike), " in line for run_id in AMBIGUOUS[:4]) and AMBIGUOUS[4] not in line
    assert line.endswith(", …; give more of the id")


@pytest.mark.parametrize("text", ["f" * 32, "0123456789", "no hexadecimal", "", "%", "*", "'"])
def test_unknown_run_is_a_one_line_error(text: str, reader: Reader) -> None:
    with pytest.raises(UsageError, match=r"^no run .* in sqlite:.*; `lit-mnist runs` lists the runs$"):
        resolve_run_id(find_store(), reader, text)


def test_deleted_run_is_not_found(newest: str, reader: Reader) -> None:
    client = connect(find_store())
    deleted = client.create_run("0").info.run_id
    client.delete_run(deleted)
    for text in (deleted, deleted[:12]):
        with pytest.raises(UsageError, match=r"^no run"):
            resolve_run_id(find_store(), reader, text)
    assert resolve_run_id(find_store(), reader, "last") == newest


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "0000000", "last"),
        ("test", "--run", "0000000"),
        ("fit", "--resume", "0000000"),
    ],
)
def test_every_command_reports_ambiguity_in_the_same_way(arguments: tuple[str, ...], cli: Cli) -> None:
    code, out, err = cli(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lit-mnist: error: more than one run begins with '0000000'")


def test_last_names_the_newest_local_folder(cli: Cli) -> None:
    assert local_folder("last") is None
    with open_run("lookup", system_metrics=False, offline=True) as older:
        pass
    with open_run("lookup", system_metrics=False, offline=True) as run:
        pass
    assert older.folder != run.folder == local_folder("last")
    code, _, err = cli("test", "--run", run.id[:12])
    error = err.splitlines()[-1]  # after the lines of the runs that have ended
    assert code == 2 and error.startswith(f"lit-mnist: error: run {run.id} is offline: `lit-mnist sync` sends it")
    assert f"(offline it was {run.id})" in cli("sync", "last")[1]
