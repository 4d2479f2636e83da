"""`lit-mnist runs`: table, JSON, filter, order, limit and errors."""

import contextlib
import json
from pathlib import Path

import pytest
from conftest import Cli, enter_project

from lit_mnist.tracking.run import open_run

RUNS = [
    # name, experiment, monitor, value; oldest first
    ("first", "cnn", "val/acc", 0.91),
    ("broken", "cnn", None, None),
    ("second", "cnn", "val/acc", 0.97),
    ("third", "autoencoder", "val/loss", 0.02),
    ("fourth", "autoencoder", "val/loss", 0.01),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    """A project with five runs, shared by all tests of this module; no test changes it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_project(tmp_path_factory.mktemp("listing"), patch)
        for name, experiment, monitor, value in RUNS:
            with contextlib.suppress(ZeroDivisionError), open_run(experiment, name, system_metrics=False) as run:
                if monitor is None:
                    raise ZeroDivisionError
                run.set_tags({"monitor": monitor})
                run.log_metrics({f"best/{monitor}": value, monitor: value / 2}, 7)
        yield folder


@pytest.fixture
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path) -> Path:
    return enter_project(tmp_path, monkeypatch)


def _names(cli: Cli, *flags: str) -> list[str]:
    code, out, err = cli("runs", "--json", *flags)
    assert (code, err) == (0, "")
    return [run["name"] for run in json.loads(out)]


def test_table_lists_runs_newest_first(cli: Cli) -> None:
    code, out, err = cli("runs")
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["id", "name", "experiment", "status", "best", "duration"]
    assert [line.split()[1] for line in lines] == [name for name, *_ in reversed(RUNS)]
    assert len(lines[0].split()[0]) == 8  # the beginning of an id names a run everywhere
    assert lines[3].split()[2:4] == ["cnn", "FAILED"]
    assert lines[0].split()[2:6] == ["autoencoder", "FINISHED", "val/loss", "0.0100"]
    assert all(line.endswith(" s") for line in map(str.rstrip, lines))


def test_json_contains_all_metrics(cli: Cli) -> None:
    run = json.loads(cli("runs", "--json", "--experiment", "autoencoder")[1])[0]
    assert run["metrics"] == {"best/val/loss": 0.01, "val/loss": 0.005}
    assert (run["status"], run["metric"], run["best"]) == ("FINISHED", "val/loss", 0.01)
    assert 0 <= run["duration"] < 60


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--experiment", "cnn"), ["second", "broken", "first"]),
        (("--sort", "metric"), ["second", "first", "fourth", "third", "broken"]),
        (("--sort", "name"), ["broken", "first", "fourth", "second", "third"]),
        (("--experiment", "cnn", "--sort", "status"), ["broken", "second", "first"]),
        (("--limit", "2"), ["fourth", "third"]),
        (("--limit", "9" * 20, "--experiment", "cnn"), ["second", "broken", "first"]),
        (("--sort", "metric", "--limit", "1"), ["second"]),
    ],
)
def test_filter_order_and_limit(flags: tuple[str, ...], names: list[str], cli: Cli) -> None:
    assert _names(cli, *flags) == names


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--experiment", "cn"), "there is no experiment 'cn'"),
        (("--limit", "0"), "--limit 0 must be at least 1"),
        (("--sort", "size"), "argument --sort: invalid choice: 'size'"),
    ],
)
def test_wrong_flag_is_a_one_line_error(flags: tuple[str, ...], line: str, cli: Cli) -> None:
    code, out, err = cli("runs", *flags)
    assert (code, out) == (2, "") and err.startswith(f"lit-mnist: error: {line}") and err.count("\n") == 1


def test_empty_store_prints_how_to_make_a_run(empty_project: Path, cli: Cli) -> None:
    code, out, err = cli("runs")
    assert (code, err) == (0, "") and out.startswith(f"no runs in sqlite:///{empty_project}/mlruns/mlflow.db yet")
    assert cli("runs", "--json")[1] == "[]\n"
