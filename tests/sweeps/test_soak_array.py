"""A job array on one study: tasks are killed or requeued, and the study ends like an undisturbed one.

LIT_MNIST_SOAK=N does this with N trials, which are disturbed every few seconds until they are done, and also on
clusters whose nodes have the same host name, with a common and with separate PID namespaces.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
from conftest import enter_project
from postgres import Postgres
from servers import Server
from slurm import Nodes, cluster, slurm
from small import trial_runs, write_spec

from lit_mnist.sweeps.study.storage import open_storage, open_study, study_names
from lit_mnist.sweeps.study.study import COMPLETE
from lit_mnist.tracking.store import connect, find_store

pytestmark = [pytest.mark.slurm, pytest.mark.postgres, pytest.mark.root]
TRIALS = int(os.environ.get("LIT_MNIST_SOAK", "0"))
SEED = int(os.environ.get("LIT_MNIST_SOAK_SEED", str(random.randrange(10**6))))
TASKS = 4
LIMIT = 600.0
"""Seconds without a validation after which the study counts as stuck."""
FLAGS = {"data.train_per_class": 50, "data.batch_size": 5, "trainer.max_epochs": 3, "checkpoint.every_n_steps": 30}


@contextmanager
def servers(folder: Path, patch: pytest.MonkeyPatch, nodes: Nodes) -> Iterator[Any]:
    """Start SLURM, PostgreSQL, an MLflow server and a project that uses them; yields the storage of studies."""
    with tempfile.TemporaryDirectory() as name, cluster(folder / "slurm", nodes) as environment:
        Path(name).chmod(0o755)  # PostgreSQL does not run as root
        postgres, mlflow = Postgres(Path(name) / "postgres"), Server(folder)
        enter_project(folder / "project", patch)
        postgres.start()
        storage: Any = None
        try:
            mlflow.start()
            settings = {"LIT_MNIST_STORAGE": postgres.create("array"), "MLFLOW_TRACKING_URI": mlflow.uri}
            for key, value in {**environment, **settings, "OMP_NUM_THREADS": "1"}.items():
                patch.setenv(key, value)
            storage = open_storage(None)
            yield storage
        finally:
            if storage is not None:
                storage.wrapped._backend.scoped_session.remove()
                storage.engine.dispose()
            mlflow.kill()
            postgres.stop()


def submit_array(spec: str) -> str:
    """Submit the sweep as an array, or submit it again; returns the job's id."""
    command = [sys.executable, "-m", "lit_mnist.cli", "submit", "--name", "swept", "--array", str(TASKS),
               "--cpus", "1", "--", "sweep", spec]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("submitted as ")[2].partition(";")[0]


def tasks_in(states: str, job: str) -> list[str]:
    """The array tasks of the job that are in one of the states, as JOB_INDEX."""
    output = slurm("squeue", "--noheader", "--array", "--jobs", job, "--states", states, "--format", "%i")
    return output.split()


def kill_hard(task: str) -> None:
    """Kill every process of the task's sweep at once, as the kernel does when memory runs out."""
    array, _, index = task.partition("_")
    for process in psutil.process_iter(["name"]):
        try:
            found = process.environ()
            is_task = (found.get("SLURM_ARRAY_JOB_ID"), found.get("SLURM_ARRAY_TASK_ID")) == (array, index)
            if is_task and "python" in process.info["name"]:
                process.kill()
        except psutil.Error:
            continue


def disturb(job: str, rng: random.Random) -> str:
    """Kill or requeue one of the job's running tasks; returns what was done, empty if none runs."""
    if not (running := tasks_in("RUNNING", job)):
        return ""
    task = rng.choice(running)
    # A killed task is not restarted: other tasks must be left to take over its trial.
    if len(running) > 2 and rng.random() < 0.5:
        kill_hard(task)
        return f"{task} killed"
    # SLURM refuses to requeue a task that has just ended.
    done = subprocess.run(["scontrol", "requeue", task], capture_output=True, check=False)
    return f"{task} requeued" if done.returncode == 0 else ""


def validations(storage: Any) -> int:
    """The number of validations of all trials."""
    trials = open_study(storage, "small").trials if "small" in study_names(storage) else []
    return sum(len(trial.intermediate_values) for trial in trials)


def check_study(storage: Any, trials: int) -> None:
    """Check that each trial has one finished run without duplicate points, and the study has one run."""
    study = open_study(storage, "small")
    assert [trial.state for trial in study.trials] == [COMPLETE] * trials
    runs = trial_runs(study)
    assert [run.data.tags["sweep.trial"] for run in runs] == [str(number) for number in range(trials)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    # `sweep status` distinguishes the tasks by these names.
    assert len({trial.user_attrs["owner"]["task"] for trial in study.trials}) > 1
    client = connect(find_store())
    for run in runs:
        for metric in ("train/loss", "val/acc", "val/loss"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            assert steps and len(steps) == len(set(steps)), (run.info.run_id, metric, steps)
    experiment = client.get_experiment_by_name("sweeps/small")
    [own] = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'study'")
    assert own.info.run_id == study.user_attrs["run_id"] and own.info.status == "FINISHED"


def run_disturbed(storage: Any, trials: int, most: int, every: float) -> list[str]:
    """Run a study as an array, with at most `most` disturbances about `every` seconds apart; returns them."""
    spec, rng, done, seen = write_spec(flags=FLAGS, trials=trials), random.Random(SEED), [], 0
    job, known, since = submit_array(spec), 0, time.monotonic()
    while tasks_in("PENDING,RUNNING,COMPLETING", job):
        if (now := validations(storage)) > known:
            known, since = now, time.monotonic()
        assert time.monotonic() < since + LIMIT, f"seed {SEED}: {done}\n{logs()}"
        time.sleep(rng.uniform(0.5, 1.5) * every)
        # On a busy machine a task may take a minute to start: the next disturbance waits until there is progress.
        if len(done) < most and validations(storage) > seen and (what := disturb(job, rng)):
            seen = validations(storage)
            done.append(what)
            print(f"{len(done)} {what} after {seen} validations, load {os.getloadavg()[0]:.1f}", flush=True)
    return done


def logs() -> str:
    return "".join(path.read_text() for path in sorted(Path("mlruns/jobs/swept").glob("log-*.txt")))


def test_an_array_whose_tasks_are_killed_and_requeued_completes_one_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers(tmp_path, monkeypatch, "named") as storage:
        done = run_disturbed(storage, trials=8, most=2, every=2)
        assert done, logs()
        check_study(storage, 8)


@pytest.mark.soak
@pytest.mark.parametrize("nodes", get_args(Nodes))
def test_a_long_study_of_an_array_that_is_disturbed_every_few_seconds(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {SEED}: LIT_MNIST_SOAK_SEED={SEED} does the same again")
    with servers(tmp_path, monkeypatch, nodes) as storage:
        done = run_disturbed(storage, TRIALS, most=10 * TRIALS, every=8)
        print(f"{len(done)} disturbances: {', '.join(done)}")
        check_study(storage, TRIALS)
