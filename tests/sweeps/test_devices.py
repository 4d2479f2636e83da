"""A trial on two devices has one set of parameters, one run, and one report per validation."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from servers import wait_for
from small import run_small_study, spec_text, trial_runs, write_spec

from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.sweeps.study.study import create_or_open_study
from lit_mnist.sweeps.workers.distributed import wait_or_kill
from lit_mnist.tracking.store import connect, find_store

LR = [0.01, 1e-7]


def test_a_trial_on_two_devices_has_one_run_and_is_pruned_on_both(project: Path) -> None:
    fields = {
        "metric": "val/loss", "direction": "minimize", "trials": 2, "sampler": "grid",
        "points": [{"model.lr": 0.01}],
        "space": {"model.lr": {"choices": LR}}, "pruner": {"name": "median", "n_startup_trials": 1},
        "flags": {"trainer.devices": 2, "trainer.accelerator": "cpu", "trainer.strategy": "ddp",
                  "trainer.max_epochs": 2},
    }  # fmt: skip
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(**fields), "small"))
    good = create_trial(
        value=0.1,
        params={"model.lr": 0.01},
        distributions={"model.lr": CategoricalDistribution(LR)},
        intermediate_values={0: 0.2, 1: 0.1},
    )
    study.add_trial(good)
    _, trial = run_small_study(**fields).get_trials()
    assert trial.state == TrialState.PRUNED and trial.params == {"model.lr": 1e-7}
    assert list(trial.intermediate_values) == [0]
    (run,) = trial_runs(study)
    assert [run.info.run_id] == trial.user_attrs["runs"] and run.info.status == "FINISHED"
    assert run.data.params["lr"] == "1e-07" and run.data.tags["device"].startswith("cpu × 2")
    assert run.data.tags["sweep.state"] == "pruned" and run.data.metrics["epoch"] == 0


HANGING_RANKS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    other_rank = subprocess.Popen([sys.executable, __file__, "other rank"])
    print(other_rank.pid, flush=True)
time.sleep(600)
"""


def test_a_training_that_ignores_sigterm_is_killed_with_all_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.workers.distributed.GROUP_SAVE_TIMEOUT", 0.5)
    program = tmp_path / "ranks.py"
    program.write_text(HANGING_RANKS)
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        other_rank = psutil.Process(int(process.stdout.readline()))
        signals = SignalWatch()
        signals.received = signal.SIGTERM
        watchdog = threading.Timer(30, os.killpg, (process.pid, signal.SIGUSR1))  # so that a failure does not hang
        watchdog.start()
        wait_or_kill(process, signals)
        watchdog.cancel()
        assert process.returncode == -signal.SIGKILL
        try:
            wait_for(lambda: not other_rank.is_running() or other_rank.status() == "zombie", "its death", 10)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                other_rank.kill()


ORPHAN = """
import signal, time
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.workers import parent_watch

parent_watch.SAVE_TIMEOUT = 0.5
with SignalWatch() as signals:
    parent_watch.ParentWatch(signals)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)
"""


def test_a_process_that_hangs_after_its_parent_has_died_is_killed() -> None:
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        process.stdin.close()  # as the system does with the pipes of a dead process
        watchdog = threading.Timer(30, process.terminate)  # so that a failure does not hang
        watchdog.start()
        assert process.wait() == -signal.SIGKILL
        watchdog.cancel()


def test_a_sweep_in_a_job_of_several_tasks_trains_and_logs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is that of the second task of `srun --ntasks=2 lit-mnist sweep small.yaml`."""
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "sweep", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
                 "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0",
                 "SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "1"}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "lit_mnist.cli", "sweep", write_spec(trials=1)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    client = connect(find_store())
    experiment = client.get_experiment_by_name("sweeps/small")
    [trial] = client.search_runs([experiment.experiment_id], "tags.`sweep.trial` = '0'")
    assert trial.info.status == "FINISHED" and trial.data.tags["slurm.job"] == "7"
    assert client.get_metric_history(trial.info.run_id, "train/loss")
