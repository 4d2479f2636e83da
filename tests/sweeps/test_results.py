"""`lit-mnist sweep status`, `best`, `export` and `list`, and what is stored in the run of a study."""

import json
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pandas
import psutil
import pytest
import yaml
from conftest import Cli, enter_project
from optuna.trial import TrialState
from PIL import Image
from small import write_spec
from studied import QUIET, add_trial, complete_trials, made_up_study, make_study, real_study

from lit_mnist.cluster.job import Job, jobs_folder
from lit_mnist.sweeps.results.description import StudyPlace, closing_lines, describe_study
from lit_mnist.sweeps.results.figures import draw_figures
from lit_mnist.sweeps.results.html import page
from lit_mnist.sweeps.results.parent_run import log_summary
from lit_mnist.sweeps.results.progress import ProgressDisplay
from lit_mnist.sweeps.search.optuna_private import set_constraint
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.sweeps.study.summary import read_summary, runs
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.fit import fit


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    """A study in its own project, shared by the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        enter_project(tmp_path_factory.mktemp("results"), patch)
        patch.delenv("LIT_MNIST_STORAGE", raising=False)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            dead = f"{process.pid}@{psutil.Process(process.pid).create_time():.2f}"
            process.communicate(b"end")
        yield real_study(dead)


@pytest.fixture
def project(study: optuna.Study) -> Path:
    return Path.cwd()


def test_status_shows_progress_and_running_trials(cli: Cli, study: optuna.Study) -> None:
    code, out, err = cli("sweep", "status", "lrs")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "study lrs: 4 of 8 trials finished (2 complete, 1 pruned, 1 failed, 2 unfinished)"
    best = read_summary(study).best()[0]
    assert re.match(rf"best: trial {best.number}, best/val/acc 0\.\d+ ± 0\.\d+; lr ", lines[1])
    alive, stale = (next(line for line in lines if line.startswith(number)) for number in ("4 ", "5 "))
    assert alive.split()[2:5] == ["1", "2", "0.5"]
    assert "stale" in stale and "stale" not in alive
    # 4 trials of 2 s are left, and one of them has had all its validations.
    assert lines[-1] == "about 6.0 s left with 1 worker"


def test_the_best_configuration_reproduces_the_best_value_exactly(
    cli: Cli, study: optuna.Study, project: Path
) -> None:
    best = read_summary(study).best()[0]
    code, out, err = cli("sweep", "best", "lrs")
    assert (code, err) == (0, "")
    assert all(run_id in out for run_id in runs(best))
    assert f"trial {best.number} again" in out.splitlines()[-3]
    assert out.splitlines()[-2:] == [f"  lit-mnist fit --config lrs_best{end}.yaml" for end in ("", "_seed_1")]
    values = []
    for end in ("", "_seed_1"):
        result = fit(["--config", f"lrs_best{end}.yaml", *QUIET])
        assert result is not None
        values.append([result.metrics["best/val/acc"]])
    assert values == best.user_attrs["values"]
    assert yaml.safe_load((project / "lrs_best_seed_1.yaml").read_text())["seed_everything"] == 1


def test_best_overwrites_only_its_own_file(cli: Cli, project: Path) -> None:
    (project / "mine.yaml").write_text("model: CNN\n")
    code, _, err = cli("sweep", "best", "lrs", "--out", "mine.yaml")
    assert code == 1 and "mine.yaml is not a configuration of this study's" in err
    assert (project / "mine.yaml").read_text() == "model: CNN\n"
    assert [cli("sweep", "best", "lrs", "--out", "own.yaml")[0] for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_export_writes_a_row_per_trial(cli: Cli, study: optuna.Study, project: Path, suffix: str) -> None:
    code, out, err = cli("sweep", "export", "lrs", "--out", f"t.{suffix}")
    assert (code, out, err) == (0, f"t.{suffix}: 6 trials\n", "")
    read = {"csv": pandas.read_csv, "parquet": pandas.read_parquet}[suffix]
    table = read(project / f"t.{suffix}")
    assert table["state"].tolist() == ["complete", "complete", "pruned", "failed", "unfinished", "unfinished"]
    assert table["model.lr"].tolist() == [0.03, 0.5, 0.02, 0.9, 0.2, 0.3]
    first = complete_trials(study)[0]
    assert table["best/val/acc"][0] == first.value
    assert [[table[f"best/val/acc/seed_{seed}"][0]] for seed in (0, 1)] == first.user_attrs["values"]
    assert table["runs"][0].split() == list(runs(first))
    assert table["reason"][3] == "val/loss is nan"
    assert set(table["model.channels"]) == {"[2, 4]"}


def test_list_prints_a_line_per_study(cli: Cli) -> None:
    code, out, err = cli("sweep", "list")
    assert (code, err) == (0, "")
    assert "lrs    4 of 8    2 complete, 1 pruned, 1 failed, 2 unfinished  best/val/acc" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "lr"], "did you mean lrs?"),
        (["best", "lr"], "did you mean lrs?"),
        (["export", "lrs", "--out", "t.xlsx"], ".csv or .parquet"),
    ],
)
def test_errors_are_one_line(cli: Cli, arguments: list[str], words: str) -> None:
    code, out, err = cli("sweep", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_status_tells_the_tasks_of_a_job_array_apart(project: Path, cli: Cli) -> None:
    study = make_study("tasks", storage=open_storage(None))
    for task in ("7_0", "7_1"):
        owner = {"host": "node7", "process": "1@1.00", "task": task, "worker": 0}
        add_trial(study, TrialState.RUNNING, owner=owner)
    lines = cli("sweep", "status", "tasks")[1].splitlines()
    header, first, second = lines[1:4]
    assert header.split()[:4] == ["trial", "host", "job", "worker"]
    assert first.split()[:4] == ["0", "node7", "7_0", "0"] and second.split()[:4] == ["1", "node7", "7_1", "0"]


def test_printed_commands_are_quoted(cli: Cli, project: Path) -> None:
    study = make_study("zwei Wörter", (("val/acc", "maximize"),), storage=open_storage("two words.journal"))
    add_trial(study, TrialState.COMPLETE, mean=(0.9,))
    study.set_user_attr("trials", 1)
    out = cli("sweep", "status", "zwei Wörter", "--storage", "two words.journal")[1]
    command = "lit-mnist sweep 'zwei Wörter' --storage 'two words.journal'"
    assert f"finished; `{command} --trials 2` adds more" in out
    assert f"next: {command.replace('sweep', 'sweep best')}" in closing_lines(read_summary(study), "")


def test_printed_commands_work_for_a_study_in_another_storage(cli: Cli, project: Path) -> None:
    elsewhere = ("--storage", "other.journal")
    next_command = re.compile(r"(?:next: |`)lit-mnist ([^`\n]*)")
    code, out, err = cli("sweep", write_spec(), "--trials", "1", *elsewhere)
    assert code == 0, err
    status = cli("sweep", "status", "small", *elsewhere)[1]
    for words in (next_command.findall(out)[-1], next_command.findall(status)[0]):
        code, out, err = cli(*words.split())
        assert code == 0 and words.count("--storage other.journal") == 1, err
    assert next_command.findall(out)[-1] == "sweep confirm small --storage other.journal --top 3 --seeds 5"


def test_status_imports_neither_torch_nor_mlflow() -> None:
    program = (
        "import sys, lit_mnist.sweeps.results.status; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_run_of_a_study_has_summary_figures_and_page_but_no_metrics(project: Path) -> None:
    study = made_up_study(30)
    with open_run("sweeps/lrs", "lrs", system_metrics=False) as run:
        log_summary(study, run)
        log_summary(study, run)  # a sweep that was interrupted logs again at its end
    client = connect(find_store())
    best = max(trial.values[0] for trial in read_summary(study).complete)
    assert not client.get_run(run.id).data.metrics
    folder = Path(client.download_artifacts(run.id, ""))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_trials"][0]["values"] == {"val/acc": best}
    assert summary["best_trials"][0]["point"]["model.channels"] == [2, 4]
    names = {path.name for path in (folder / "figures").iterdir()}
    images = {f"{name}.png" for name in ("history", "importances", "heat_map", "parallel_coordinates", "slices")}
    assert names == images | {"study.html"}
    for name in images:
        with Image.open(folder / "figures" / name) as image:
            assert len(set(image.convert("L").tobytes())) > 20
    page = (folder / "figures" / "study.html").read_text()
    assert page.count("<svg") == len(images) and "src=" not in page and "https://" not in page.split("<script>")[1]
    assert all(f'xlink:href="#trial-{number}"' in page for number in range(30) if number % 6 != 5)
    assert len(page) < 1.5e6
    # Without this mode in the link, MLflow 3.17 opens the view for language models.
    assert f"#/experiments/{run.experiment_id}/runs/RUN?workflowType=machine_learning" in page


@pytest.mark.parametrize("states", [[], [TrialState.FAIL] * 3, [TrialState.RUNNING]])
def test_a_study_with_nothing_complete_has_no_figures(project: Path, states: list[TrialState]) -> None:
    study = make_study()
    for state in states:
        add_trial(study, state)
    with open_run("sweeps/lrs", "lrs", system_metrics=False) as run:
        log_summary(study, run)
    artifacts = [item.path for item in connect(find_store()).list_artifacts(run.id)]
    assert artifacts == (["summary.json"] if states else [])


def test_best_is_the_pareto_front_and_respects_constraints() -> None:
    study = make_study("two", (("val/acc", "maximize"), ("parameters", "minimize")))
    for values in ((0.9, 100.0), (0.8, 50.0), (0.7, 60.0), (0.95, 400.0)):
        add_trial(study, TrialState.COMPLETE, mean=values)
    assert [trial.number for trial in read_summary(study).best()] == [3, 0, 1]
    one = make_study("one")
    for accuracy, excess in ((0.5, -1.0), (0.9, 1.0), (0.6, 0.0)):
        trial = one.ask(LR_SPACE)
        set_constraint(trial, "seconds", excess)
        one.tell(trial, accuracy)
    assert [trial.number for trial in read_summary(one).best()] == [2]


def test_a_study_without_a_complete_trial_has_no_best(cli: Cli, project: Path) -> None:
    make_study("empty", storage=open_storage("empty.journal"))
    code, _, err = cli("sweep", "best", "empty", "--storage", "empty.journal")
    assert code == 1 and "study empty has no complete trial that keeps to its constraints (none yet)" in err


def test_several_objectives_are_shown_as_a_pareto_front(cli: Cli, project: Path) -> None:
    goals = (("val/acc", "maximize"), ("parameters", "minimize"))
    study = make_study("front", goals, storage=open_storage("front.journal"))
    for values in ((0.9, 100.0), (0.8, 50.0), (0.7, 60.0)):
        add_trial(study, TrialState.COMPLETE, mean=values)
    lines = cli("sweep", "status", "front", "--storage", "front.journal")[1].splitlines()
    assert [line.split(",")[0] for line in lines[1:3]] == [f"on the Pareto front: trial {n}" for n in (0, 1)]
    assert "2 trials on the Pareto front" in cli("sweep", "list", "--storage", "front.journal")[1]
    summary = read_summary(study)
    assert closing_lines(summary, "")[1:] == [
        "      of 2 on the Pareto front, the one with the best val/acc",
        "next: lit-mnist sweep best front --storage front.journal",
    ]
    said = describe_study(summary, StudyPlace("7", "c" * 32, "lit-mnist sweep a.yaml"))
    assert said.startswith("Best val/acc: trial 0") and "2 trials are on the Pareto front" in said


def test_the_page_has_commands_but_neither_a_password_nor_figures_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.results.html.MAX_FIGURES", 1)
    study = made_up_study(9)
    study.set_user_attr("spec", SPEC)
    text = page(study, draw_figures(read_summary(study)), "https://me:secret@server:5000/mlflow/", "7")
    assert "<svg" not in text and "Too large for this page: history.png" in text
    assert "lit-mnist fit --config zhang/cnn --model.lr 0.05 --model.momentum 0.99" in text
    assert '"https://server:5000/mlflow"' in text and "secret" not in text


def test_jobs_show_the_progress_of_their_study(cli: Cli, study: optuna.Study, project: Path) -> None:
    folder, best = jobs_folder(find_store().home) / "swept", read_summary(study).best()[0]
    folder.mkdir(parents=True)
    known = ("lrs", "4 of 8 trials", f"best/val/acc {best.values[0]:.4g}")
    for flags, shown in (([], known), (["--storage", "gone.journal"], ("lrs", "", ""))):
        Job("swept", ["sweep", "lrs", *flags], study="lrs").write(folder)
        [row] = json.loads(cli("jobs", "swept", "--json")[1])
        assert (row["state"], row["run"], row["status"], row["best"]) == ("ended", *shown)
    assert not (project / "gone.journal").exists()


LR_SPACE = {"model.lr": optuna.distributions.FloatDistribution(0.1, 1.0)}


SPEC = """\
config: zhang/cnn
metric: val/acc
direction: maximize
trials: 6
space:
  model.lr: {low: 0.01, high: 1, log: true}
  model.momentum: {low: 0, high: 0.99}
"""


def test_the_progress_display_shows_finished_and_running_trials(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("lit_mnist.sweeps.results.progress.REFRESH_INTERVAL", 0.0)
    study = make_study(objectives=(("val/acc", "maximize"),))
    add_trial(study, TrialState.COMPLETE, mean=(0.5,))
    with ProgressDisplay(study, parse_spec(SPEC, "lrs"), 2) as display:
        assert not display.update()  # what was finished before is not printed again
        add_trial(study, TrialState.COMPLETE, 0.2, mean=(0.9,))
        add_trial(study, TrialState.PRUNED, 0.02, reason="at epoch 1 with val/acc 0.1")
        owner = {"host": "node7", "worker": 1}
        add_trial(study, TrialState.RUNNING, 0.3, owner=owner, reported={0: 0.25, 1: 0.75})
        assert display.update()
    lines = capsys.readouterr().out
    assert "trial 0:" not in lines
    assert "trial 1: val/acc 0.9000; lr 0.2, momentum 0.5" in lines
    assert "trial 2: pruned at epoch 1 with val/acc 0.1; lr 0.02" in lines
    assert "best val/acc 0.9000 (trial 1)" in lines and ", about " in lines
    *_, worker = [line for line in lines.splitlines() if "worker 1 on node7" in line and "trial 3" in line]
    assert "2 validations, val/acc 0.75" in worker and "lr 0.3" in worker
    assert "study lrs: 3 of 6 trials (2 complete, 1 pruned, 1 unfinished)" in lines
