"""Jobs on a real SLURM: each is disturbed and starts again, and its run equals that of an undisturbed job."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shutil import which
from typing import Any

import psutil
import pytest
import torch
from conftest import MINI, SOAK, enter_project
from slurm import cluster, slurm

from lit_mnist.tracking.store import connect, find_store

pytestmark = [pytest.mark.slurm, pytest.mark.root]
LIMIT = 240.0
"""Seconds that a test waits at most, for a job that takes ten."""
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


def job_row(name: str) -> dict[str, Any]:
    """The job's row in `lit-mnist jobs --json`."""
    [found] = json.loads(lit_mnist("jobs", name, "--json"))
    return found


def wait_for(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Wait until the condition returns something true, and return that."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.3)
    raise AssertionError(f"no {what} within {limit:.0f} s")


def state(job: str) -> str:
    return slurm("squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T").strip()


def submit(name: str, *options: str, command: list[str] = FIT) -> str:
    """Submit the job; returns the id that SLURM gives it."""
    output = lit_mnist("submit", "--name", name, *options, "--", *command)
    return output.partition("submitted as ")[2].partition(";")[0]


def log_of(name: str, project: Path) -> str:
    return "".join(path.read_text() for path in sorted((project / "mlruns" / "jobs" / name).glob("log-*.txt")))


def wait_for_checkpoint(name: str, project: Path) -> None:
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
    try:
        content = torch.load(record.parent / "checkpoints" / "last.ckpt", weights_only=True)
    except FileNotFoundError:  # between the two renames of a save
        content = torch.load(record.parent / "checkpoints" / "previous.ckpt", weights_only=True)
    return int(content["global_step"])


def result(name: str) -> tuple[str, dict[str, list[tuple[int, float]]], dict[str, torch.Tensor]]:
    """Status, points and weights of the only run with that key."""
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


def logged_at(name: str) -> list[float]:
    """The times at which the run with that key logged its training loss, which is every 10 steps."""
    client = connect(find_store())
    experiments = [found.experiment_id for found in client.search_experiments()]
    [run] = client.search_runs(experiments, f"tags.key = '{name}'")
    return sorted(point.timestamp / 1000 for point in client.get_metric_history(run.info.run_id, "train/loss"))


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


def wait_until_completed(name: str, job: str, project: Path, limit: float = LIMIT) -> None:
    """Wait until SLURM has completed the job; the error has the job's output."""
    try:
        wait_for(lambda: state(job) == "COMPLETED", f"end of job {name}", limit)
    except AssertionError:
        raise AssertionError(f"{state(job)}: {log_of(name, project)}") from None


def training_of(name: str, rank: int = 0) -> psutil.Process | None:
    """The process of that rank in the job's training; None if it does not run."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--key" not in words or name not in words or "srun" in words[0]:
            continue
        with suppress(psutil.NoSuchProcess):
            if process.environ().get("SLURM_PROCID", "0") == str(rank):
                return process
    return None


def kill(name: str, rank: int = 0) -> None:
    """Send SIGKILL to the process of that rank in the job's training."""
    process = training_of(name, rank)
    assert process is not None, f"{name} does not run"
    process.kill()


def test_a_requeued_job_continues_its_run_and_dependent_jobs_wait(project: Path, undisturbed) -> None:
    job = submit("requeued")
    after = submit("after", "--after", "requeued", command=["reproduce"])
    wait_for_checkpoint("requeued", project)
    slurm("scontrol", "requeue", job)
    assert state(after) == "PENDING"
    wait_until_completed("requeued", job, project)
    wait_until_completed("after", after, project)
    assert job_row("requeued")["restarts"] == 1
    assert_same("requeued", undisturbed)


def test_a_warning_before_the_time_limit_puts_the_job_back_into_the_queue(project: Path, undisturbed) -> None:
    job = submit("warned")
    wait_for_checkpoint("warned", project)
    # As with --signal=B:USR1@... SLURM's shortest time limit is a minute: only `make soak` waits for a real one.
    slurm("scancel", "--batch", "--signal", "USR1", job)
    wait_until_completed("warned", job, project)
    assert job_row("warned")["restarts"] == 1 and "requeued (restart 1 of 20)" in log_of("warned", project)
    assert_same("warned", undisturbed)


def test_a_preempted_job_continues_when_there_is_room_again(project: Path, undisturbed) -> None:
    job = submit("preempted", "--sbatch=--exclusive", "--sbatch=--nodelist=n1")
    wait_for_checkpoint("preempted", project)
    urgent = slurm("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--nodelist=n1",
                   "--output=/dev/null", "--wrap", "sleep 3").strip()  # fmt: skip
    wait_for(lambda: state(urgent) == "COMPLETED", "end of the urgent job")
    wait_until_completed("preempted", job, project)
    assert_same("preempted", undisturbed)


def test_a_cancelled_job_is_saved_and_continues_when_it_is_submitted_again(project: Path, undisturbed) -> None:
    job = submit("cancelled")
    wait_for_checkpoint("cancelled", project)
    lit_mnist("jobs", "--cancel", "cancelled")
    wait_for(lambda: state(job) == "CANCELLED", "cancelled job")
    wait_for(lambda: job_row("cancelled")["status"] == "KILLED", "saved run")
    wait_until_completed("cancelled", submit("cancelled"), project)
    assert_same("cancelled", undisturbed)


def test_a_killed_job_continues_when_it_is_submitted_again(project: Path, undisturbed) -> None:
    job = submit("killed")
    wait_for_checkpoint("killed", project)
    kill("killed")
    wait_for(lambda: state(job) == "FAILED", "failed job")
    wait_until_completed("killed", submit("killed"), project)
    assert_same("killed", undisturbed)


def test_a_job_whose_node_goes_down_continues_on_another(project: Path, undisturbed) -> None:
    slurm("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    job = submit("stranded")
    wait_for_checkpoint("stranded", project)
    slurm("scontrol", "update", "NodeName=n2", "State=RESUME")
    slurm("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    try:
        wait_until_completed("stranded", job, project)
    finally:
        # The node may have returned to service by itself.
        subprocess.run(["scontrol", "update", "NodeName=n1", "State=RESUME"], capture_output=True, check=False)
    assert job_row("stranded")["restarts"] == 1
    assert_same("stranded", undisturbed)


def test_a_training_on_two_nodes_survives_requeue_killed_rank_and_cancellation(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*FIT, "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "1"]
    # Both nodes are this machine, whose name may not resolve to the address of the loopback interface.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def start(name: str) -> str:
        return submit(name, "--nodes", "2", command=command)

    wait_until_completed("whole", start("whole"), project)
    status, *whole = result("whole")
    assert status == "FINISHED"

    job = start("pair")
    wait_for_checkpoint("pair", project)
    slurm("scancel", "--batch", "--signal", "USR1", job)
    wait_for(lambda: job_row("pair")["restarts"] == 1 and job_row("pair")["state"] == "RUNNING", "restarted job")
    step = wait_for(lambda: steps_done("pair", project), "resumed training")
    wait_for(lambda: steps_done("pair", project) > step, "checkpoint of the resumed training")
    kill("pair", rank=1)
    wait_for(lambda: state(job) == "FAILED", "failed job")
    step, job = steps_done("pair", project), start("pair")
    wait_for(lambda: steps_done("pair", project) > step, "checkpoint of the job submitted again")
    lit_mnist("jobs", "--cancel", "pair")
    wait_for(lambda: state(job) == "CANCELLED", "cancelled job")
    wait_for(lambda: result("pair")[0] == "KILLED", "saved run")
    wait_until_completed("pair", start("pair"), project)
    assert_same("pair", (whole[0], whole[1]))
    wait_until_completed("pair", start("pair"), project)  # nothing is left, and no rank waits for the other
    assert "nothing left to do" in log_of("pair", project)


def test_a_controller_that_is_busy_is_asked_again_and_takes_a_job_once(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = psutil.Process(int(Path(os.environ["SLURM_CONF"]).with_name("slurmctld.pid").read_text()))
    # The controller is suspended when the job is submitted, and resumed after `sbatch` has timed out.
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\nkill -STOP {controller.pid}; exec {which("sbatch")} "$@"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    submitted = ["submit", "--name", "busy", "--sbatch=--hold", "--", "reproduce", "--table"]
    for arguments, message in (
        (submitted, "`sbatch`: looking"),
        (["jobs", "busy", "--json"], "`squeue`: asking again"),
    ):
        if arguments is not submitted:
            controller.suspend()
        command = [sys.executable, "-m", "lit_mnist.cli", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            try:
                assert message in process.stderr.readline()
            finally:
                controller.resume()
            output, errors = process.stdout.read(), process.stderr.read()
        assert process.returncode == 0, errors
    [found] = json.loads(output)
    assert found["id"] == slurm("squeue", "--noheader", "--name", "busy", "--format", "%A").strip()
    slurm("scancel", found["id"])


def long_fit(epochs: int) -> list[str]:
    """A training of so many epochs, which take at least a tenth of a second each."""
    return [*FIT, "--trainer.max_epochs", str(epochs), "--checkpoint.every_n_steps", "200"]


def undisturbed_result(epochs: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    lit_mnist(*long_fit(epochs), "--key", f"undisturbed-{epochs}")
    status, points, weights = result(f"undisturbed-{epochs}")
    assert status == "FINISHED"
    return points, weights


@dataclass
class Restart:
    """An interruption of a training and its restart; times are in seconds since 1970."""

    way: str
    step: int
    """Step of the newest checkpoint before the interruption."""
    signal: float
    ended: float = 0.0
    """When the process had ended."""
    started: float = 0.0
    """When the next process started."""
    first_step: float = 0.0
    """When the next process first logged a step."""

    def parts(self) -> list[float]:
        """Seconds to save, in the queue and to start, and their sum."""
        moments = [self.signal, self.ended, self.started, self.first_step]
        return [*(after - before for before, after in pairwise(moments)), moments[-1] - moments[0]]


def disturb(name: str, job: str, way: str, command: list[str], project: Path) -> tuple[str, Restart] | None:
    """Interrupt the job's training; returns the job that continues it, and the restart. None if it has ended."""
    if (process := training_of(name)) is None:
        return None
    restart = Restart(way, steps_done(name, project), time.time())
    if way == "warning":
        slurm("scancel", "--batch", "--signal", "USR1", job)
    elif way == "requeue":
        slurm("scontrol", "requeue", job)
    elif way == "cancel":
        slurm("scancel", job)
    else:
        process.kill()
    process.wait(LIMIT)
    restart.ended = time.time()
    if way in ("warning", "requeue") and state(job) == "COMPLETED":  # it had just ended by itself
        return None
    if way in ("cancel", "kill"):
        wait_for(lambda: state(job) in ("CANCELLED", "FAILED"), "ended job")
        job = submit(name, command=command)
    restart.started = wait_for(
        lambda: training_of(name), f"restart: {log_of(name, project)[-2000:]}"
    ).create_time()
    return job, restart


def print_restarts(restarts: list[Restart]) -> None:
    def line(name: str, parts: Iterable[float]) -> str:
        return f"{name:28}" + "".join(f"{part:8.1f}" for part in parts)

    print(f"{'seconds':28}{'saved':>8}{'queued':>8}{'started':>8}{'in all':>8}")
    for number, restart in enumerate(restarts, 1):
        print(line(f"{number:3} {restart.way:8} at step {restart.step}", restart.parts()))
    columns = [sorted(column) for column in zip(*(restart.parts() for restart in restarts), strict=True)]
    for name, share in (("median", 0.5), ("90th percentile", 0.9), ("worst", 1.0)):
        print(line(name, (column[round(share * (len(column) - 1))] for column in columns)))


@pytest.mark.soak
def test_a_job_disturbed_at_random_moments_equals_the_undisturbed_one(project: Path) -> None:
    seed = int(os.environ.get("LIT_MNIST_SOAK_SEED", random.randrange(10**6)))
    print(f"seed {seed}: LIT_MNIST_SOAK_SEED={seed} does the same again")
    rng, command = random.Random(seed), long_fit(10 * SOAK)
    whole = undisturbed_result(10 * SOAK)
    job, restarts = submit("soaked", command=command), list[Restart]()
    wait_for_checkpoint("soaked", project)
    while len(restarts) < SOAK:
        time.sleep(rng.uniform(0, 1))
        done = disturb("soaked", job, rng.choice(["warning", "requeue", "cancel", "kill"]), command, project)
        if done is None:
            break
        job, restart = done
        restarts.append(restart)
        print(f"{len(restarts)} {restart.way} at step {restart.step}, load {os.getloadavg()[0]:.1f}", flush=True)

        def goes_on(before: int = restart.step, job: str = job) -> bool:
            return state(job) == "COMPLETED" or steps_done("soaked", project) > before + 200

        wait_for(goes_on, f"progress: {log_of('soaked', project)[-2000:]}")
    wait_until_completed("soaked", job, project, limit=1200)
    assert_same("soaked", whole)
    times = logged_at("soaked")
    for restart in restarts:  # a restart after the last logged step has no first step
        restart.first_step = next((moment for moment in times if moment > restart.started), math.nan)
    print_restarts([restart for restart in restarts if not math.isnan(restart.first_step)])


@pytest.mark.soak
def test_a_job_that_takes_longer_than_its_time_limit_is_finished_by_its_restarts(project: Path) -> None:
    epochs, took = 25, 0.0
    while took < 75:  # more than one start of the job can do, which the warning ends after 45 s
        epochs, start = 2 * epochs, time.monotonic()
        whole = undisturbed_result(epochs)
        took = time.monotonic() - start
    wait_until_completed(
        "limited", submit("limited", "--time", "1", command=long_fit(epochs)), project, limit=1200
    )
    print(f"{job_row('limited')['restarts']} restarts\n{log_of('limited', project)}")
    assert job_row("limited")["restarts"] >= 1
    assert_same("limited", whole)
