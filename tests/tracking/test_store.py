"""A project has one store, whichever process opens it first, and from whichever of its folders."""

import multiprocessing
from pathlib import Path

import pytest
from conftest import Cli

from lit_mnist.errors import UserError
from lit_mnist.tracking.store import Store, connect, experiment_id, find_store, local_uri

PROCESSES = 16


def _open_first(gate, answers) -> None:
    gate.wait()
    try:
        store = find_store()
        answers.put(experiment_id(connect(store), store, "together"))
    except BaseException as error:
        answers.put(repr(error))


def test_processes_that_create_the_store_at_the_same_time_agree(project: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow"])  # imported once, in the fork server
    gate, answers = context.Barrier(PROCESSES), context.Queue()
    workers = [context.Process(target=_open_first, args=(gate, answers)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert set(found) == {experiment_id(connect(find_store()), find_store(), "together")}
    assert not [worker for worker in workers if worker.exitcode]


@pytest.mark.parametrize("mark", ["pyproject.toml", "mlruns/mlflow.db", ".git/HEAD"])
def test_every_folder_of_a_project_finds_the_same_store(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    (tmp_path / mark).touch()
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    for folder in (tmp_path, deep.parent, deep):
        monkeypatch.chdir(folder)
        assert find_store().uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
        assert find_store().uri == local_uri(find_store().home) and find_store().home == tmp_path / "mlruns"


def test_the_environment_names_another_store(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/elsewhere/own.db")
    store = find_store()
    connect(store)
    assert (project / "elsewhere" / "own.db").exists() and not (project / "mlruns" / "mlflow.db").exists()
    assert store.uri != local_uri(store.home) and store.home == project / "mlruns"


def test_a_damaged_database_is_named_in_one_line(project: Path) -> None:
    store = find_store()
    store.home.mkdir()
    (store.home / "mlflow.db").write_bytes(b"no database at all, but long enough to look like one" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db") as caught:
        connect(store)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_deleted_experiment_can_be_brought_back_as_the_error_says(project: Path) -> None:
    store = find_store()
    client = connect(store)
    number = experiment_id(client, store, "gone")
    client.delete_experiment(number)
    with pytest.raises(UserError, match=f"`mlflow experiments restore --experiment-id {number}`"):
        experiment_id(client, store, "gone")
    client.restore_experiment(number)
    assert experiment_id(client, store, "gone") == number


def test_connecting_to_a_store_does_not_make_it_the_default(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(f"sqlite:///{project}/other.db", project / "mlruns")
    connect(other)
    assert find_store().uri == local_uri(project / "mlruns")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    connect(other)
    assert find_store().uri == "sqlite:////elsewhere.db"


def test_no_connection_to_the_database_is_left_open(project: Path) -> None:
    """Python 3.13 warns when an open connection is garbage collected, which may happen during any later test."""
    client = connect(find_store())
    client.search_experiments()
    client.create_run("0")
    opened = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in opened if path.startswith(str(project))]


READ_ONLY = "sqlite:///file:{}/mlruns/mlflow.db?mode=ro&uri=true"
FIT = ("fit", "--config", "zhang/cnn", "--data", "MiniMNISTDataModule", "--trainer.max_epochs", "1")


@pytest.mark.parametrize("command", [("runs",), ("compare", "ab", "cd"), FIT, ("fit", "--resume", "ab")])
def test_an_sql_dump_as_the_store_is_a_one_line_error(
    command: tuple[str, ...], cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "dump.sql").write_text(
        "BEGIN TRANSACTION;\nCREATE TABLE runs (run_uuid VARCHAR(32));\nCOMMIT;\n" * 9
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/dump.sql")
    code, out, err = cli(*command)
    assert code == 1 and out == ""
    assert err.endswith(f"the tracking store sqlite:///{project}/dump.sql: file is not a database\n")
    assert err.count("\n") == 1


def test_a_read_only_database_can_be_listed_and_a_fit_is_a_one_line_error(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(find_store()).create_run("0", run_name="old")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", READ_ONLY.format(project))
    code, out, err = cli("runs")
    assert code == 0 and "old" in out and err == ""
    code, out, err = cli(*FIT)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert err.endswith("attempt to write a readonly database\n")


def test_an_empty_id_to_resume_is_refused(cli: Cli) -> None:
    for empty in ("", " "):
        code, out, err = cli("fit", "--resume", empty)
        assert (code, out) == (2, "")
        assert err == "lit-mnist: error: --resume is empty: it needs a run's id, its beginning, or last\n"
