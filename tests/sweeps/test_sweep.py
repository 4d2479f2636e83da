"""`lit-mnist sweep` with real workers: killed, interrupted, started again, a study has its trials once each."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from conftest import Cli
from optuna.trial import TrialState
from servers import wait_for
from small import history, trial_runs, work, write_spec

from lit_mnist.sweeps.storage import open_storage, open_study

LONG = {"data.train_per_class": 100, "data.batch_size": 5, "trainer.max_epochs": 5, "checkpoint.every_n_steps": 20}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def small() -> optuna.Study:
    return open_study(open_storage(None), "small")


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def validated(number: int) -> bool:
    """Whether trial `number` is in the middle of its training."""
    journal = Path("mlruns/sweeps.journal")
    if not journal.exists() or '"trials"' not in journal.read_text():
        return False
    trials = small().get_trials()
    return len(trials) > number and bool(trials[number].intermediate_values)


def kill_worker_of(number: int) -> None:
    wait_for(lambda: validated(number), f"trial {number} to be in training")
    os.kill(int(small().get_trials()[number].user_attrs["owner"]["process"].partition("@")[0]), signal.SIGKILL)


def interrupt_in(number: int) -> None:
    wait_for(lambda: validated(number), f"trial {number} to be in training")
    os.kill(os.getpid(), signal.SIGINT)


def workers() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        if "worker" in process.cmdline():
            yield process


def test_a_study_has_its_trials_once_each_however_its_workers_end(cli: Cli, tmp_path: Path) -> None:
    spec = write_spec(flags=LONG, trials=3)
    killer = meanwhile(lambda: kill_worker_of(0))
    code, out, err = cli("sweep", spec, "--workers", "2")
    killer.join()
    assert code == 0, err
    assert [line.split(":")[0] for line in sorted(out.splitlines())] == [
        "study small",
        "trial 0",
        "trial 1",
        "trial 2",
    ]
    assert "study small: 3 of 3 trials (3 complete); best val/acc" in out

    code, out, _ = cli("sweep", spec)
    assert code == 0 and "finished, nothing left to do" in out

    stopper = meanwhile(lambda: interrupt_in(3))
    code, _, err = cli("sweep", spec, "--trials", "5")
    stopper.join()
    assert code == 130 and "stopped by SIGINT" in err
    assert [trial.state for trial in small().get_trials()] == [*[TrialState.COMPLETE] * 3, TrialState.RUNNING]
    assert small().get_trials()[3].user_attrs["owner"] is None
    assert trial_runs(small())[3].info.status == "KILLED"
    assert not list(workers())

    study = work(flags=LONG, trials=5)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 5
    runs = trial_runs(study)
    assert [run.data.tags["sweep.trial"] for run in runs] == ["0", "1", "2", "3", "4"]
    assert {run.info.status for run in runs} == {"FINISHED"}

    whole = work(flags=LONG, trials=4, study="whole")
    for number in (0, 3):
        assert history(trial_runs(whole)[number].info.run_id) == history(runs[number].info.run_id)
    assert whole.get_trials()[0].intermediate_values == study.get_trials()[0].intermediate_values


def test_workers_whose_supervisor_is_killed_leave_their_trials_and_end(cli: Cli, tmp_path: Path) -> None:
    import subprocess
    import sys

    spec = write_spec(flags=LONG, trials=1)
    command = [sys.executable, "-m", "lit_mnist.cli", "sweep", spec]
    supervisor = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: validated(0), "the trial to be in training")
    (worker,) = psutil.Process(supervisor.pid).children()
    supervisor.kill()
    supervisor.wait()
    worker.wait(60)
    assert small().get_trials()[0].user_attrs["owner"] is None
    assert trial_runs(small())[0].info.status == "KILLED"
    time.sleep(0)


def test_workers_that_cannot_work_are_given_up_with_their_own_words(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.team.sys.executable", "/bin/false")
    code, _, err = cli("sweep", write_spec())
    assert code == 1 and "workers die without finishing a trial; the last one: exit code 1" in err
