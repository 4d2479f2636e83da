"""`lit-mnist compare`: what differs between runs, with seeds grouped, in the terminal and as an HTML page."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli, enter_project

from lit_mnist.tracking.queries.compare import compare_groups, page, study_runs
from lit_mnist.tracking.queries.grouping import Group
from lit_mnist.tracking.queries.metrics import higher_is_better, sort_value
from lit_mnist.tracking.queries.reader import ClientReader, DatabaseReader, RunData, open_reader
from lit_mnist.tracking.queries.statistics import paired, summarise
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import Store, connect, find_store

FAST = {0: 0.91, 1: 0.95, 2: 0.93}
SLOW = {0: 0.90, 1: 0.935, 2: 0.925}
PATH = "/store/stages/{}/best.ckpt"


def _log_run(
    params: Mapping[str, object], seed: int, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
) -> str:
    with open_run("compared", f"seed {seed}", system_metrics=False) as run:
        run.log_params({**params, "seed_everything": seed, "seed": seed, "root": f"/data/{seed}", "max_epochs": 3})
        run.log_metrics(metrics, 7)
        run.set_tags({"monitor": "val/acc", **(tags or {})})
    return run.id


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory):
    """Ids of runs of two configurations with three seeds, each on an encoder of its seed, and of trials."""
    with pytest.MonkeyPatch.context() as patch:
        enter_project(tmp_path_factory.mktemp("compare"), patch)
        made: dict[str, list[str]] = {"fast": [], "slow": [], "study": []}
        for seed in FAST:
            encoder = _log_run({"hidden_sizes": [98]}, seed, {"val/loss": 0.1})
            for name, lr, accuracies in (("fast", 0.5, FAST), ("slow", 0.125, SLOW)):
                params = {"lr": lr, "encoder_checkpoint": PATH.format(encoder)}
                accuracy = accuracies[seed]
                made[name].append(
                    _log_run(params, seed, {"val/acc": accuracy, "val/loss": 1 - accuracy, "epoch": 3})
                )
        for trial in range(6):
            tags = {"sweep.study": "lrs", "sweep.trial": str(trial), "sweep.seed": "0", "sweep.state": "complete"}
            made["study"].append(_log_run({"lr": trial}, 0, {"best/val/acc": (trial * 5 % 6) / 6}, tags))
        yield made


@pytest.fixture
def project(ids: dict[str, list[str]]) -> Path:
    return Path.cwd()


MODE = "workflowType=machine_learning"


def _lines(out: str) -> dict[str, list[str]]:
    """The lines of a table: first column to the others."""
    return {line.split()[0]: re.split(r"  +", line.strip())[1:] for line in out.splitlines() if line.strip()}


def test_two_runs_show_only_differences_and_mark_the_best(cli: Cli, ids: dict[str, list[str]]) -> None:
    first, second = ids["fast"][0], ids["slow"][0]
    code, out, err = cli("compare", first[:12], second)
    assert (code, err) == (0, "")
    head, *rest = out.splitlines()
    assert head.split() == [first[:8], second[:8]]
    lines = _lines("\n".join(rest))
    assert lines["lr"] == ["0.5", "0.125"]
    assert lines["val/acc"] == ["0.9100*", "0.9000"]
    assert lines["val/loss"] == ["0.09000*", "0.1000"]
    assert not {"max_epochs", "epoch", "root", "seeds", "encoder_checkpoint"} & lines.keys()


def test_seeds_are_grouped_and_differences_are_paired(cli: Cli, ids: dict[str, list[str]]) -> None:
    code, out, err = cli("compare", *ids["fast"], *ids["slow"])
    assert (code, err) == (0, "")
    grouped, differences = out.split("* the best")
    lines = _lines(grouped)
    assert lines["lr"] == ["0.5", "0.125"]
    # As given by scipy.stats.t.interval(0.95, 2, ...) and scipy.stats.ttest_rel(...).confidence_interval().
    assert lines["val/acc"] == ["0.930 ± 0.050*", "0.920 ± 0.045"]
    assert _lines(differences)["val/acc"] == ["-0.010 ± 0.012"]


def test_repetitions_with_the_same_seed_are_different_groups(cli: Cli, ids: dict[str, list[str]]) -> None:
    made = [_log_run({"lr": 0.75}, 0, {"val/acc": value}) for value in (0.9, 0.8)]
    out = cli("compare", *made)[1]
    assert out.splitlines()[0].split() == [run_id[:8] for run_id in made]
    assert _lines(out)["val/acc"] == ["0.9000*", "0.8000"]


def test_runs_of_one_configuration_are_shown_with_their_mean(cli: Cli, ids: dict[str, list[str]]) -> None:
    out = cli("compare", *ids["fast"])[1]
    assert out.splitlines()[0].split() == [*(run_id[:8] for run_id in ids["fast"]), "mean"]
    assert _lines(out)["val/acc"] == ["0.9100", "0.9500*", "0.9300", "0.930 ± 0.050"]


def test_a_run_without_an_added_option_is_grouped_with_one_that_does_not_use_it(
    cli: Cli, ids: dict[str, list[str]]
) -> None:
    params = {"data": "MNISTDataModule", "lr": 0.25}
    made = [
        _log_run(params, 0, {"val/acc": 0.9}),
        _log_run({**params, "shift": 0, "flip": False}, 1, {"val/acc": 0.8}),
    ]
    out = cli("compare", *made)[1]
    assert out.splitlines()[0].split()[-1] == "mean" and "flip" not in out
    moved = _log_run({**params, "shift": 2, "flip": False}, 2, {"val/acc": 0.7})
    assert _lines(cli("compare", made[0], moved)[1])["shift"] == ["0", "2"]


def test_study_has_one_row_per_trial_best_first(cli: Cli, ids: dict[str, list[str]]) -> None:
    code, out, err = cli("compare", "--study", "lrs")
    assert (code, err) == (0, "")
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert rows[0] == ["run", "best/val/acc", "lr"]
    assert [row[0] for row in rows[1:7]] == [f"trial {trial}" for trial in (1, 2, 3, 4, 5, 0)]
    assert rows[1][1].endswith("*")


def test_page_has_the_same_content_in_one_file(cli: Cli, ids: dict[str, list[str]], project: Path) -> None:
    code, out, _ = cli("compare", *ids["fast"], *ids["slow"], "--html", "page.html")
    page = (project / "page.html").read_text()
    assert code == 0 and out.endswith("page.html\n")
    assert '<td class="metric best" data-number="0.93">0.930 ± 0.050</td>' in page
    assert "-0.010 ± 0.012" in page
    assert all(run_id in page for run_id in ids["fast"] + ids["slow"])
    assert all(f'/runs/{run_id}?workflowType=machine_learning">{run_id[:8]}</a>' in page for run_id in ids["fast"])
    assert "<code>lit-mnist ui</code> serves" in page and "/store/" not in page


def test_a_page_that_cannot_be_written_is_an_error_with_its_name(
    cli: Cli, ids: dict[str, list[str]], project: Path
) -> None:
    (project / "folder.html").mkdir()
    code, _, err = cli("compare", *ids["fast"], "--html", "folder.html")
    assert code == 1 and "Is a directory: 'folder.html'" in err and err.count("\n") == 1
    (project / "file").touch()
    code, _, err = cli("compare", *ids["fast"], "--html", "file/page.html")
    assert code == 1 and "Not a directory: 'file/page.html'" in err and err.count("\n") == 1
    assert not list(project.glob("*.tmp")) and not list(project.glob(".*.tmp"))


def test_page_shows_full_values_and_links_runs_on_a_server(project: Path) -> None:
    path = "/a/folder/deep/in/some/tree/" + "x" * 60
    runs = [
        RunData(digit * 32, "name", "FINISHED", {"source": f"{path}/{digit}"}, {"val/acc": 0.5}, {}, "e", "17")
        for digit in "ab"
    ]
    found = compare_groups([Group(run.id[:8], [run]) for run in runs])
    served = page(found, "two", Store("https://someone:secret@server:5000/mlflow/", project))
    assert "secret" not in served and f"{path}/a<" in served
    assert (
        f'<a href="https://server:5000/mlflow/#/experiments/17/runs/{"a" * 32}?{MODE}">{"a" * 8}</a></td>'
        in served
    )
    assert f'/runs/{"b" * 32}?{MODE}">{"b" * 32}</a></code>' in served
    assert "lit-mnist ui" not in served
    assert 'href="http://127.0.0.1:5000/#/' in page(found, "two", Store("sqlite:////a.db", project))
    assert all(len(cell) == 40 for cell in found.params[0].cells)


def test_a_group_that_is_certainly_worse_is_marked(project: Path) -> None:
    def group(label: str, accs: tuple[float, ...]) -> Group:
        return Group(label, [
            RunData(f"{seed}" * 32, label, "FINISHED", {"seed_everything": f"{seed}"},
                    {"val/acc": acc, "val/loss": 1 - acc}, {})
            for seed, acc in enumerate(accs)
        ])  # fmt: skip

    first = group("first", (0.90, 0.91, 0.92))
    found = compare_groups([first, group("lower", (0.80, 0.811, 0.82)), group("same", (0.91, 0.90, 0.925))])
    marks = {line.name: line.marks for line in found.differences}
    assert marks == {"val/acc": ["worse", ""], "val/loss": ["worse", ""]}
    shown = page(found, "three", Store("sqlite:////a.db", project))
    assert '<td class="metric worse" data-number="-0.09' in shown and "metric better" not in shown


def test_a_narrow_terminal_hides_no_objective(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_project(tmp_path, monkeypatch)
    monkeypatch.setattr("lit_mnist.tracking.queries.compare.width", lambda: 22)
    for trial in range(6):
        tags = {"sweep.study": "two", "sweep.trial": str(trial), "sweep.seed": "0",
                "sweep.goals": "maximize val/acc, minimize parameters"}  # fmt: skip
        metrics = {"val/acc": trial / 6, "parameters": 100.0 * trial + 100, "best/val/acc": trial / 6}
        _log_run({"lr": trial, "a_long_name_of_a_parameter": trial}, 0, metrics, tags)
    rows = cli("compare", "--study", "two")[1].splitlines()
    assert rows[0].split() == ["run", "val/acc", "parameters"]
    assert rows[1].split()[1:] == ["5", "0.8333*", "600"] and rows[6].split()[3] == "100*"


def test_table_wider_than_the_terminal_names_what_it_omits(
    cli: Cli, ids: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.tracking.queries.compare.width", lambda: 22)
    out = cli("compare", "--study", "lrs")[1]
    assert out.splitlines()[0].split() == ["run", "best/val/acc"]
    assert "no room for the columns lr: `--html FILE` shows all" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["abcdefabcdef"], "no run 'abcdefabcdef' in"),
        (["--study", "lr"], "did you mean lrs?"),
        ([], "two runs or more"),
        (["abc", "--study", "lrs"], "two runs or more"),
    ],
)
def test_unknown_run_or_study_is_a_one_line_error(cli: Cli, arguments: list[str], words: str) -> None:
    code, out, err = cli("compare", *arguments)
    assert (code != 0, out, err.count("\n")) == (True, "", 1)
    assert words in err


def test_comparing_one_run_is_an_error(cli: Cli, ids: dict[str, list[str]]) -> None:
    assert "comparing takes two" in cli("compare", ids["fast"][0], ids["fast"][0])[2]


def test_both_readers_return_the_same(ids: dict[str, list[str]]) -> None:
    store: Store = find_store()
    database, client = open_reader(store), ClientReader(connect(store))
    assert isinstance(database, DatabaseReader)

    def plain(runs: list[RunData]) -> list[RunData]:
        return [replace(r, params=dict(r.params), metrics=dict(r.metrics), tags=dict(r.tags)) for r in runs]

    wanted = [*ids["fast"], "0" * 32, *ids["study"]]
    assert plain(database.runs(wanted)) == plain(client.runs(wanted))
    assert database.studies() == client.studies() == ["lrs"]
    assert plain(database.trial_runs("lrs")) == plain(client.trial_runs("lrs"))
    assert [run.id for run in study_runs(store, database, "lrs")] == ids["study"]
    for start in (ids["fast"][0][:9], ids["fast"][0]):
        assert database.ids_beginning(start) == client.ids_beginning(start) == [ids["fast"][0]]


def test_paired_difference_needs_two_common_seeds() -> None:
    assert paired({"0": 1.0, "1": 2.0}, {"1": 1.0, "2": 5.0}) is None
    difference = paired({"0": 1.0, "1": 2.0, "2": 9.0}, {"1": 1.0, "0": 0.5})
    assert difference == summarise([0.5, 1.0])


@pytest.mark.parametrize(
    ("metric", "goal", "upwards"),
    [
        ("val/acc", "", True),
        ("best/train/acc_epoch", "", True),
        ("test/accuracy", "", True),
        ("val/loss", "", False),
        ("test/mse", "", False),
        ("accelerator", "", None),
        ("parameters", "", None),
        ("parameters", "minimize parameters", False),
        ("best/val/acc", "minimize val/acc", False),
        ("val/loss", "minimize val/acc", False),
    ],
)
def test_the_direction_of_a_metric_follows_from_its_name_or_the_study(
    metric: str, goal: str, upwards: bool | None
) -> None:
    assert higher_is_better(metric, goal) is upwards
    values = [0.5, float("nan"), 0.25]
    better = [0.5, 0.25] if upwards else [0.25, 0.5]
    assert sorted(values, key=lambda value: sort_value(metric, value, goal))[:2] == better


def test_the_direction_of_every_models_metric_is_that_of_the_model() -> None:
    from lit_mnist import models

    kinds = [kind for kind in vars(models).values() if isinstance(kind, type) and hasattr(kind, "monitor_mode")]
    assert len(kinds) > 5
    assert {(kind.monitor_mode == "max") == higher_is_better(kind.monitor) for kind in kinds} == {True}
