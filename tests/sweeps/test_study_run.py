"""The run of a study in which several sweeps take part, and sweeps in jobs that end soon."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from servers import wait_for
from slurm import cluster, slurm
from small import run_small_study, spec_text, trial_runs, write_spec
from studied import add_trial, make_study

from lit_mnist.cli import main
from lit_mnist.errors import UserError
from lit_mnist.slurm import ENDED
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.job_time import FIRST_SAVE, JobEndsError, reason_to_stop
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import create_or_open_study, get_trials, stored_spec
from lit_mnist.sweeps.study.study_run import study_run
from lit_mnist.tracking.store import connect, find_store

SWEEP = """
import time
from lit_mnist.guard import guarded
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.study.leases import Leases
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import stored_spec
from lit_mnist.sweeps.study.study_run import study_run

def work():
    study = open_study(open_storage(None), "small")
    leases = Leases(study, stored_spec(study), 0, 1)
    with SignalWatch() as signals, study_run(study, leases.spec):
        trial = leases.acquire()
        print("works", flush=True)
        while signals.received is None:
            time.sleep(0.05)
        leases.release(trial)
        signals.check()

raise SystemExit(guarded(work))
"""
"""A sweep with a single process, whose training never ends."""


def test_the_run_of_a_study_is_running_until_its_last_sweep_ends(project: Path) -> None:
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=2), "small"))
    sweeps = [subprocess.Popen([sys.executable, "-c", SWEEP], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        assert [sweep.stdout.readline() for sweep in sweeps if sweep.stdout] == [b"works\n"] * 2
        for sweep, status in zip(sweeps, ("RUNNING", "KILLED"), strict=True):
            sweep.send_signal(signal.SIGTERM)
            assert sweep.wait() == 128 + signal.SIGTERM
            run = connect(find_store()).get_run(study.user_attrs["run_id"])
            assert run.info.status == status
            # `runs --reap` looks at the process in the run's tags, which has to be the one that is still alive.
            assert status == "KILLED" or run.data.tags["process"].startswith(f"{sweeps[1].pid}@")
    finally:
        for sweep in sweeps:
            sweep.kill()
            sweep.communicate()


def test_a_running_sweep_sets_the_run_of_its_study_to_running_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.study.study_run.HEARTBEAT_INTERVAL", 0.0)
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=1), "small"))
    with study_run(study, stored_spec(study)) as run:
        run.run.client.set_terminated(run.run.id, "KILLED")  # as by another sweep that has found no other worker
        run.keep_running(get_trials(study))
        run.run.uploader.flush()
        assert run.run.data().info.status == "RUNNING"


def set_job_environment(monkeypatch: pytest.MonkeyPatch, job: str, since: float, left: float) -> None:
    """Set the environment of a job that began `since` seconds ago and ends in `left` seconds."""
    now = time.time()
    variables = {"JOB_ID": job, "JOB_NAME": "sweep", "JOB_START_TIME": now - since, "JOB_END_TIME": now + left}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value).partition(".")[0])


def test_a_sweep_begins_no_trial_shortly_before_its_job_ends(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    study = run_small_study(trials=1)
    (trial,) = study.get_trials()
    assert 0 < trial.user_attrs[FIRST_SAVE] <= trial.duration.total_seconds()
    set_job_environment(monkeypatch, "7", since=3600, left=100)
    code, _, err = cli("sweep", write_spec(trials=2))
    assert (
        code == 75 and "and a trial takes" in err and "to its first checkpoint: the next start of the job" in err
    )
    study = open_study(open_storage(None), "small")
    assert len(study.get_trials()) == len(trial_runs(study)) == 1
    assert connect(find_store()).get_run(study.user_attrs["run_id"]).info.status == "KILLED"


def test_a_trial_that_fits_into_no_job_is_an_error_that_does_not_requeue(monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    add_trial(study, TrialState.COMPLETE, mean=(0.9,), **{FIRST_SAVE: 300.0})
    assert reason_to_stop(study.get_trials()) is None  # not in a job
    set_job_environment(monkeypatch, "8", since=0, left=3600)
    assert reason_to_stop(study.get_trials()) is None
    set_job_environment(monkeypatch, "9", since=3300, left=300)
    assert isinstance(reason_to_stop(study.get_trials()), JobEndsError)
    set_job_environment(monkeypatch, "10", since=0, left=400)
    error = reason_to_stop(study.get_trials())
    assert type(error) is UserError and "more than the 5 min 00 s that this job's time limit leaves" in str(error)


@pytest.mark.slurm
@pytest.mark.root
def test_a_job_on_slurm_begins_no_trial_that_would_not_be_saved_before_its_limit(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 20 minutes, 2 are for the warning, and when the sweep checks, a second has passed: 1,079 s are not left.
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=2), "small"))
    distribution = FloatDistribution(1e-3, 0.1, log=True)
    study.add_trial(
        create_trial(values=[0.5], params={"model.lr": 0.01}, distributions={"model.lr": distribution},
                     user_attrs={FIRST_SAVE: 1079.0, "point": {"model.lr": 0.01}, "values": [[0.5]]})
    )  # fmt: skip
    spec = write_spec(trials=2)

    def submit_and_wait(limit: str) -> tuple[str, str]:
        """Submit a job with this time limit and wait for its end; returns its state and its output."""
        command = ["submit", "--name", "timed", "--time", limit, "--restarts", "0", "--", "sweep", spec]
        assert main(command) == 0
        job = json.loads((project / "mlruns/jobs/timed/job.json").read_text())["ids"][-1]
        query = ["squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T"]
        wait_for(lambda: slurm(*query).strip() in ENDED, "end of the job", 600)
        return slurm(*query).strip(), (project / f"mlruns/jobs/timed/log-{job}.txt").read_text()

    with cluster(tmp_path_factory.mktemp("slurm") / "c") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        state, output = submit_and_wait("20")
        assert state == "FAILED" and "was restarted 0 times (--restarts)" in output, output
        assert "a trial takes 17 min 59 s to its first checkpoint: the next start of the job goes on" in output
        assert len(get_trials(study)) == 1
        state, output = submit_and_wait("60")
        assert state == "COMPLETED", output
        assert [trial.state for trial in get_trials(study)] == [TrialState.COMPLETE] * 2
