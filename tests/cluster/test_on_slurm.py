"""Jobs on a real SLURM: each is disturbed, starts again, and ends as the run that an undisturbed job would be."""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import MINI, SOAK, enter_project
from slurm import cluster, slurm

from lit_mnist.tracking.store import connect, find_store

pytestmark = [pytest.mark.slurm, pytest.mark.root]
LIMIT = 240.0
"""Seconds that a test waits at most; a job takes ten."""
FIT = ["fit", "--config", "zhang/cnn", *MINI, "--model.channels", "[4,4]", "--model.dropout", "0.3",
       "--data.train_size", "null", "--data.train_per_class", "100", "--data.val_size", "500",
       "--data.batch_size", "10", "--trainer.max_epochs", "30", "--trainer.log_every_n_steps", "10",
       "--checkpoint.every_n_steps", "50", "--tracking.figures", "false"]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project on a SLURM cluster; SLURM_CONF and OMP_NUM_THREADS are set."""
    with pytest.MonkeyPatch.context() as patch, cluster(tmp_path_factory.mktemp("slurm") / "c") as environment:
        for name, value in {**environment, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        yield enter_project(tmp_path_factory.mktemp("project"), patch)


def lit_mnist(*arguments: str) -> str:
    command = [sys.executable, "-m", "lit_mnist.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def row(name: str) -> dict[str, Any]:
    """What `lit-mnist jobs` says of the job."""
    [found] = json.loads(lit_mnist("jobs", name, "--json"))
    return found


def wait_for(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.3)
    raise AssertionError(f"no {what} within {limit:.0f} s")


def state(job: str) -> str:
    return slurm("squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T").strip()


def submit(name: str, *options: str, command: list[str] = FIT) -> str:
    """Submit the job; returns SLURM's id."""
    output = lit_mnist("submit", "--name", name, *options, "--", *command)
    return output.partition("submitted as ")[2].partition(";")[0]


def log_of(name: str, project: Path) -> str:
    return "".join(path.read_text() for path in sorted((project / "mlruns" / "jobs" / name).glob("log-*.txt")))


def in_training(name: str, project: Path) -> None:
    """Wait until the job's run has a checkpoint."""

    def reached() -> bool:
        return any(
            f'"key": "{name}"' in path.read_text() and (path.parent / "checkpoints" / "last.ckpt").exists()
            for path in (project / "mlruns" / "runs").glob("*/run.json")
        )

    wait_for(reached, f"checkpoint of {name}: {log_of(name, project)}")


def steps_done(name: str, project: Path) -> int:
    """The step of the newest checkpoint of the job's run."""
    [record] = [
        path for path in (project / "mlruns" / "runs").glob("*/run.json") if f'"key": "{name}"' in path.read_text()
    ]
    content = torch.load(record.parent / "checkpoints" / "last.ckpt", weights_only=True)
    return int(content["global_step"])


def result(name: str) -> tuple[str, dict[str, list[tuple[int, float]]], dict[str, torch.Tensor]]:
    """Status, metric history and weights of the one run with that key."""
    client = connect(find_store())
    experiments = [found.experiment_id for found in client.search_experiments()]
    [run] = client.search_runs(experiments, f"tags.key = '{name}'")
    points = {
        metric: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric))
        for metric in run.data.metrics
        if metric not in ("seconds", "images_per_s") and not metric.startswith("system/")
    }
    path = client.download_artifacts(run.info.run_id, "checkpoints/last.ckpt")
    return run.info.status, points, torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, torch.Tensor]]:
    lit_mnist(*FIT, "--key", "undisturbed")
    status, points, weights = result("undisturbed")
    assert status == "FINISHED"
    return points, weights


def assert_same(name: str, undisturbed: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> None:
    status, points, weights = result(name)
    assert status == "FINISHED"
    assert points == undisturbed[0]
    assert weights.keys() == undisturbed[1].keys()
    assert all(torch.equal(weights[key], value) for key, value in undisturbed[1].items())


def finish(name: str, job: str, project: Path, limit: float = LIMIT) -> None:
    try:
        wait_for(lambda: state(job) == "COMPLETED", f"end of job {name}", limit)
    except AssertionError:
        raise AssertionError(f"{state(job)}: {log_of(name, project)}") from None


def pid_of(name: str, rank: int = 0) -> int:
    """The process of the job's training, of that rank."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--key" not in words or name not in words or "srun" in words[0]:
            continue
        if process.environ().get("SLURM_PROCID", "0") == str(rank):
            return process.pid
    raise AssertionError(f"{name} does not run")


def test_a_requeued_job_continues_its_run_and_dependent_jobs_wait(project: Path, undisturbed) -> None:
    job = submit("requeued")
    after = submit("after", "--after", "requeued", command=["reproduce"])
    in_training("requeued", project)
    slurm("scontrol", "requeue", job)
    assert state(after) == "PENDING"
    finish("requeued", job, project)
    finish("after", after, project)
    assert row("requeued")["restarts"] == 1
    assert_same("requeued", undisturbed)


def test_a_warning_before_the_time_limit_puts_the_job_back_into_the_queue(project: Path, undisturbed) -> None:
    job = submit("warned")
    in_training("warned", project)
    # As --signal=B:USR1@... does. SLURM's shortest limit is a minute: `make soak` waits for a real one.
    slurm("scancel", "--batch", "--signal", "USR1", job)
    finish("warned", job, project)
    assert row("warned")["restarts"] == 1 and "requeued (restart 1 of 20)" in log_of("warned", project)
    assert_same("warned", undisturbed)


def test_a_preempted_job_continues_when_there_is_room_again(project: Path, undisturbed) -> None:
    job = submit("preempted", "--sbatch=--exclusive", "--sbatch=--nodelist=n1")
    in_training("preempted", project)
    urgent = slurm("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--nodelist=n1",
                   "--output=/dev/null", "--wrap", "sleep 3").strip()  # fmt: skip
    wait_for(lambda: state(urgent) == "COMPLETED", "end of the urgent job")
    finish("preempted", job, project)
    assert_same("preempted", undisturbed)


def test_a_cancelled_job_is_saved_and_continues_when_it_is_submitted_again(project: Path, undisturbed) -> None:
    job = submit("cancelled")
    in_training("cancelled", project)
    lit_mnist("jobs", "--cancel", "cancelled")
    wait_for(lambda: state(job) == "CANCELLED", "cancelled job")
    wait_for(lambda: row("cancelled")["status"] == "KILLED", "saved run")
    finish("cancelled", submit("cancelled"), project)
    assert_same("cancelled", undisturbed)


def test_a_killed_job_continues_when_it_is_submitted_again(project: Path, undisturbed) -> None:
    job = submit("killed")
    in_training("killed", project)
    os.kill(pid_of("killed"), signal.SIGKILL)
    wait_for(lambda: state(job) == "FAILED", "failed job")
    finish("killed", submit("killed"), project)
    assert_same("killed", undisturbed)


def test_a_job_whose_node_goes_down_continues_on_another(project: Path, undisturbed) -> None:
    slurm("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    job = submit("stranded")
    in_training("stranded", project)
    slurm("scontrol", "update", "NodeName=n2", "State=RESUME")
    slurm("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    try:
        finish("stranded", job, project)
    finally:
        # A node that answers again may have returned to service by itself.
        subprocess.run(["scontrol", "update", "NodeName=n1", "State=RESUME"], capture_output=True, check=False)
    assert row("stranded")["restarts"] == 1
    assert_same("stranded", undisturbed)


def test_a_training_on_two_nodes_goes_on_after_a_requeue_a_killed_rank_and_a_cancellation(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*FIT, "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "1"]
    # Both nodes are this machine, whose name does not lead to its loopback interface.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def start(name: str) -> str:
        return submit(name, "--nodes", "2", command=command)

    finish("whole", start("whole"), project)
    status, *whole = result("whole")
    assert status == "FINISHED"

    job = start("pair")
    in_training("pair", project)
    slurm("scancel", "--batch", "--signal", "USR1", job)
    wait_for(lambda: row("pair")["restarts"] == 1 and row("pair")["state"] == "RUNNING", "restarted job")
    step = wait_for(lambda: steps_done("pair", project), "resumed training")
    wait_for(lambda: steps_done("pair", project) > step, "checkpoint of the resumed training")
    os.kill(pid_of("pair", rank=1), signal.SIGKILL)
    wait_for(lambda: state(job) == "FAILED", "failed job")
    step, job = steps_done("pair", project), start("pair")
    wait_for(lambda: steps_done("pair", project) > step, "checkpoint of the job submitted again")
    lit_mnist("jobs", "--cancel", "pair")
    wait_for(lambda: state(job) == "CANCELLED", "cancelled job")
    wait_for(lambda: result("pair")[0] == "KILLED", "saved run")
    finish("pair", start("pair"), project)
    assert_same("pair", (whole[0], whole[1]))
    finish("pair", start("pair"), project)  # nothing is left, and no rank waits for the other
    assert "nothing left to do" in log_of("pair", project)


def longer(epochs: int) -> list[str]:
    """A training of so many epochs, a tenth of a second each or more."""
    return [*FIT, "--trainer.max_epochs", str(epochs), "--checkpoint.every_n_steps", "200"]


def undisturbed_result(epochs: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    lit_mnist(*longer(epochs), "--key", f"undisturbed-{epochs}")
    status, points, weights = result(f"undisturbed-{epochs}")
    assert status == "FINISHED"
    return points, weights


@pytest.mark.soak
def test_a_job_disturbed_at_random_moments_equals_the_undisturbed_one(project: Path) -> None:
    seed = int(os.environ.get("LIT_MNIST_SOAK_SEED", random.randrange(10**6)))
    print(f"seed {seed}: LIT_MNIST_SOAK_SEED={seed} does the same again")
    chance, epochs = random.Random(seed), 30 * SOAK
    whole = undisturbed_result(epochs)
    job = submit("soaked", command=longer(epochs))
    in_training("soaked", project)
    waits: list[float] = []
    while state(job) != "COMPLETED" and len(waits) < SOAK:
        time.sleep(chance.uniform(0, 5))
        before, began = steps_done("soaked", project), time.monotonic()
        way = chance.choice(["warning", "requeue", "cancel", "kill"])
        if way == "warning":
            slurm("scancel", "--batch", "--signal", "USR1", job)
        elif way == "requeue":
            slurm("scontrol", "requeue", job)
        elif state(job) == "RUNNING":
            if way == "cancel":
                lit_mnist("jobs", "--cancel", "soaked")
            else:
                os.kill(pid_of("soaked"), signal.SIGKILL)
            wait_for(lambda job=job: state(job) in ("CANCELLED", "FAILED"), "ended job")
            job = submit("soaked", command=longer(epochs))

        def goes_on(before: int = before, job: str = job) -> bool:
            return steps_done("soaked", project) > before + 200 or state(job) == "COMPLETED"

        wait_for(goes_on, f"progress: {log_of('soaked', project)[-2000:]}")
        waits.append(time.monotonic() - began)
        print(f"{len(waits)} {way}: at step {before}; the next checkpoint {waits[-1]:.1f} s later")
    finish("soaked", job, project, limit=1200)
    print(f"median time to the next checkpoint: {statistics.median(waits):.1f} s, longest {max(waits):.1f} s")
    assert_same("soaked", whole)


@pytest.mark.soak
def test_a_job_that_takes_longer_than_its_time_limit_is_finished_by_its_restarts(project: Path) -> None:
    epochs = 400
    whole = undisturbed_result(epochs)
    finish("limited", submit("limited", "--time", "1", command=longer(epochs)), project, limit=1200)
    assert row("limited")["restarts"] >= 1
    assert_same("limited", whole)
