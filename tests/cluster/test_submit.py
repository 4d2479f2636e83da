"""`lit-mnist submit` and `jobs` on a machine without SLURM: the script, the copy of the code, the errors."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Cli

from lit_mnist.cluster.job import Job, jobs_folder
from lit_mnist.cluster.script import parse_time
from lit_mnist.cluster.snapshot import PACKAGE, code_digest, take_snapshot
from lit_mnist.cluster.submit import _study
from lit_mnist.errors import UsageError
from lit_mnist.tracking.store import find_store
from lit_mnist.training.config_files import config_path


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A PATH with git and bash, and without SLURM."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("git", "bash"):
        found = subprocess.run(["which", name], capture_output=True, text=True).stdout.strip()
        if found:
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    for name in ("LIT_MNIST_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_the_script_asks_for_the_options_and_runs_a_copy_of_the_code(cli: Cli, project: Path) -> None:
    options = ["--name", "first", "--time", "4:00:00", "--gpus", "2", "--cpus", "4", "--sbatch=--qos=long"]
    code, script, _ = cli("submit", "--dry-run", *options, "--", "fit", "--config", "zhang/cnn")
    assert code == 0
    wanted = {"--job-name=first", "--time=4:00:00", "--gpus-per-node=2", "--ntasks-per-node=2",
              "--cpus-per-task=4", "--qos=long", "--requeue", "--signal=B:USR1@120", "--nodes=1"}  # fmt: skip
    assert wanted <= {line.removeprefix("#SBATCH ") for line in script.splitlines()}
    assert f"PYTHONPATH={project}/mlruns/jobs/first/code" in script
    assert "fit --config zhang/cnn --key first --trainer.devices 2" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert not (project / "mlruns").exists()


def test_the_name_of_a_job_depends_on_its_command(cli: Cli, project: Path) -> None:
    def name(*command: str) -> str:
        script = cli("submit", "--dry-run", "--", *command)[1]
        return script.partition("--job-name=")[2].split()[0]

    first = name("fit", "--config", "zhang/cnn")
    assert first.startswith("fit-zhang-cnn-") and name("fit", "--config", "zhang/cnn") == first
    assert name("fit", "--config", "zhang/cnn", "--seed_everything", "1") != first


def test_no_password_is_in_the_script(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MNIST_STORAGE", "postgresql+psycopg://me:verysecret@db.example/studies")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    script = cli("submit", "--dry-run", "--array", "4", "--", "sweep", "sweep.yaml")[1]
    assert "--array=0-3" in script and "http://mlflow.example:5000" in script and "verysecret" not in script


@pytest.mark.parametrize(("devices", "workers"), [("1", 4), ("{choices: [1, 2]}", 2), ("auto", 1), ("many", 1)])
def test_a_sweep_gets_as_many_workers_as_its_trials_leave_gpus_for(
    devices: str, workers: int, cli: Cli, project: Path
) -> None:
    section = "space" if "choices" in devices else "flags"
    (project / "wide.yaml").write_text(f"study: wide\n{section}: {{trainer.devices: {devices}}}\n")
    script = cli("submit", "--dry-run", "--gpus", "4", "--", "sweep", "wide.yaml")[1]
    assert f"sweep wide.yaml --workers {workers}" in script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-- fit --config zhang/cnn", "there is no `sbatch` here"),
        ("", "what is to be submitted?"),
        ("-- runs", "not 'runs'"),
        ("-- fit --config zhang/cnn --resume last", "--resume: a job finds its run by its name"),
        ("--array 4 -- fit --config zhang/cnn", "--array: several tasks can share a sweep only"),
        ("--array 4 -- sweep demo.yaml", "need a study in a database"),
        ("--array 4 -- sweep demo.yaml --storage sqlite:///here.db", "need a study in a database"),
        (
            "-- sweep demo.yaml --storage postgresql://me:secret@db/x",
            "--storage postgresql://me:***@db/x: the job's",
        ),
        ("--nodes 2 -- sweep demo.yaml", "--nodes: a trial runs on one node"),
        ("--time soon -- fit --config zhang/cnn", "--time soon"),
        ("--name a/b -- fit --config zhang/cnn", "--name a/b"),
        ("--gpus -1 -- fit --config zhang/cnn", "--gpus"),
        ("--nodes 0 -- fit --config zhang/cnn", "--nodes"),
        ("--after nobody --dry-run -- fit --config zhang/cnn", "--after nobody"),
    ],
)
def test_a_job_that_cannot_work_is_a_one_line_error(arguments: str, message: str, cli: Cli, project: Path) -> None:
    code, _, err = cli("submit", *arguments.split())
    assert code == 2 and err.count("\n") == 1 and message in err
    assert not (project / "mlruns").exists()


def test_jobs_without_slurm_and_without_jobs(cli: Cli, project: Path) -> None:
    assert cli("jobs") == (0, "no jobs; `lit-mnist submit -- fit --config zhang/cnn` submits one\n", "")
    code, _, err = cli("jobs", "nobody")
    assert code == 2 and "there is no job 'nobody'" in err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("4:00:00", 14_400), ("1-0", 86_400), ("1-1:30", 91_800), ("2-0:0:5", 172_805)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "1:2:3:4", "4h", "0:00"])
def test_an_invalid_time_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        parse_time(text)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_copy_has_uncommitted_changes_and_stays_as_it_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "repository" / "lit_mnist"
    shutil.copytree(PACKAGE / "cluster", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package.parent / ".gitignore").write_text("*.log\n")
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-C", str(package.parent), *command], check=True)
    (package / "job.py").write_text("edited = True\n")
    (package / "untracked.py").write_text("added = True\n")
    (package / "training.log").write_text("ignored\n")
    (package / "script.py").unlink()  # git still lists it
    (package / "run.sh").touch()
    (package / "run.sh").chmod(0o755)
    monkeypatch.setattr("lit_mnist.cluster.snapshot.PACKAGE", package)

    before = code_digest(package.parent)
    snapshot = take_snapshot(tmp_path / "code")
    (package / "job.py").write_text("edited_later = True\n")
    copy = snapshot.folder / "lit_mnist"
    assert (copy / "job.py").read_text() == "edited = True\n"
    assert (copy / "untracked.py").exists() and not (copy / "training.log").exists()
    assert not (copy / "script.py").exists() and (copy / "run.sh").stat().st_mode & 0o100
    assert snapshot.digest == before != code_digest(package.parent)  # the code of the checkout has changed since


def test_a_configuration_in_the_checkout_is_replaced_by_its_copy(cli: Cli, project: Path) -> None:
    (project / "mine.yaml").write_text("model: CNN\n")
    packaged = config_path("zhang/cnn")
    words = ["fit", f"--config={packaged}", "--config", "mine.yaml"]
    script = cli("submit", "--dry-run", "--name", "first", "--", *words)[1]
    copy = project / "mlruns/jobs/first/code" / packaged.relative_to(PACKAGE.parent)
    assert f"--config={copy} --config mine.yaml --key first" in script


def test_without_git_the_copy_has_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    snapshot = take_snapshot(tmp_path / "code")
    assert (tmp_path / "code/lit_mnist/cli.py").exists() and snapshot.commit == ""


def test_fit_with_a_key_starts_a_run_once(cli: Cli, project: Path) -> None:
    short = ["--data", "MiniMNISTDataModule", "--model.channels", "[2,2]", "--data.train_size", "null",
             "--data.train_per_class", "10", "--data.val_size", "100", "--tracking.figures", "false"]  # fmt: skip
    command = ["fit", "--config", "zhang/cnn", *short, "--key", "mine", "--trainer.max_epochs"]
    assert "in experiment zhang/cnn" in cli(*command, "1")[1]
    assert "nothing left to do" in cli(*command, "1")[1]
    assert "goes on from step 2" in cli(*command, "2")[1]
    folder = jobs_folder(find_store().home) / "mine"
    folder.mkdir(parents=True)
    Job("mine", ["fit"]).write(folder)
    [row] = json.loads(cli("jobs", "mine", "--json")[1])
    assert row["status"] == "FINISHED" and row["best"].startswith("val/acc ")
    for wrong in (["--key"], ["--key", "a'b"], ["--key", "mine", "--resume", "last"]):
        code, _, err = cli("fit", "--config", "zhang/cnn", *wrong)
        assert code == 2 and "--key" in err and err.count("\n") == 1


DEMO = Path(__file__).parents[2] / "sweeps" / "demo.yaml"


@pytest.mark.parametrize(
    ("command", "study"),
    [
        ("sweep digits --trials 9", "digits"),
        ("sweep confirm digits", "digits"),
        (f"sweep {DEMO}", "demo"),
        ("sweep missing.yaml", "missing"),
        ("fit --config zhang/cnn", None),
    ],
)
def test_a_job_knows_its_study(command: str, study: str | None) -> None:
    assert _study(command.split()) == study
