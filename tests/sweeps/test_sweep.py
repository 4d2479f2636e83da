"""`lit-mnist sweep` with real workers: however they are killed and started again, each trial is there once."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
from conftest import Cli
from optuna.trial import TrialState
from servers import wait_for
from small import history, run_small_study, spec_text, trial_runs, write_spec

from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.storage import default_storage, open_storage, open_study
from lit_mnist.sweeps.study.study import create_or_open_study, stored_spec
from lit_mnist.sweeps.study.study_run import study_run
from lit_mnist.sweeps.workers.pool import WorkerPool
from lit_mnist.sweeps.workers.spawn import WorkerConfig
from lit_mnist.tracking.store import connect, find_store

LONG = {
    "data.train_per_class": 100,
    "data.batch_size": 8,
    "trainer.max_epochs": 12,
    "checkpoint.every_n_steps": 20,
}
TIMEOUT = 200.0


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one thread, as the trainings to compare with: more threads would change the last bits of sums."""
    monkeypatch.setattr("lit_mnist.sweeps.resources.cores", lambda: 1)


def open_small_study(journal: Path | None = None) -> optuna.Study:
    return open_study(open_storage(None if journal is None else str(journal)), "small")


def start_thread(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


# By the journal's absolute path: while a sweep reads a configuration in this process, jsonargparse changes the
# working directory to that of the file, and another thread would then find the store of this checkout.
def is_training(number: int, journal: Path) -> bool:
    """True if trial `number` is in the middle of its training."""
    if not journal.exists() or '"trials"' not in journal.read_text():
        return False
    trials = open_small_study(journal).get_trials()
    return len(trials) > number and bool(trials[number].intermediate_values)


def kill_worker_of(number: int, journal: Path) -> None:
    """Kill the worker of trial `number`, and the process that it was forked from."""
    wait_for(lambda: is_training(number, journal), f"trial {number} to be in training", TIMEOUT)
    owner = open_small_study(journal).get_trials()[number].user_attrs["owner"]["process"]
    worker = psutil.Process(int(owner.partition("@")[0]))
    fork_server = worker.parent()
    worker.kill()
    assert fork_server is not None and fork_server.pid != os.getpid()
    fork_server.kill()


def interrupt_in(number: int, journal: Path) -> None:
    wait_for(lambda: is_training(number, journal), f"trial {number} to be in training", TIMEOUT)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_study_has_each_trial_once_however_its_workers_end(cli: Cli, project: Path) -> None:
    spec, journal = write_spec(flags=LONG, trials=3), project / "mlruns" / "sweeps.journal"
    killer = start_thread(lambda: kill_worker_of(0, journal))
    code, out, err = cli("sweep", spec, "--workers", "2")
    killer.join()
    assert code == 0, err
    lines = [line for line in out.splitlines() if "`lit-mnist ui`" not in line]
    assert sorted(line.split(":")[0] for line in lines) == [
        "best", "next", "page", "page", "study small", "trial 0", "trial 1", "trial 2",
    ]  # fmt: skip
    assert "study small: 3 of 3 trials (3 complete)\n" in out
    best = open_small_study().best_trial
    assert f"best: trial {best.number}, val/acc {best.value:.2f}" in out
    assert lines[-1] == "next: lit-mnist sweep confirm small --top 3 --seeds 5"

    code, out, _ = cli("sweep", spec)
    assert code == 0 and "finished, nothing left to do" in out

    stopper = start_thread(lambda: interrupt_in(3, journal))
    code, _, err = cli("sweep", spec, "--trials", "5")
    stopper.join()
    assert code == 130 and "stopped by SIGINT" in err
    trials = open_small_study().get_trials()
    assert [trial.state for trial in trials] == [*[TrialState.COMPLETE] * 3, TrialState.RUNNING]
    assert trials[3].user_attrs["owner"] is None
    assert trial_runs(open_small_study())[3].info.status == "KILLED"
    # After a signal there may be little time, so no summary is written: it is still that of the finished study.
    summary = connect(find_store()).download_artifacts(open_small_study().user_attrs["run_id"], "summary.json")
    assert json.loads(Path(summary).read_text())["trials"]["wanted"] == 3
    # No worker is left: they are grandchildren of this process.
    assert psutil.Process().children(recursive=True) == psutil.Process().children()

    study = run_small_study(flags=LONG, trials=5)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 5
    runs = trial_runs(study)
    assert [run.data.tags["sweep.trial"] for run in runs] == ["0", "1", "2", "3", "4"]
    assert {run.info.status for run in runs} == {"FINISHED"}

    whole = run_small_study(flags=LONG, trials=4, study="whole")
    for number in (0, 3):
        assert history(trial_runs(whole)[number].info.run_id) == history(runs[number].info.run_id)
    assert whole.get_trials()[0].intermediate_values == study.get_trials()[0].intermediate_values


def test_a_worker_whose_parent_is_dead_saves_its_trial_and_ends(project: Path) -> None:
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(flags=LONG, trials=1), "small"))
    with study_run(study, stored_spec(study)):
        pool = WorkerPool("small", default_storage(), 1)
        pool.start()
        wait_for(
            lambda: is_training(0, project / "mlruns" / "sweeps.journal"), "the trial to be in training", TIMEOUT
        )
        pool.close()  # as the system does with the pipes of a killed process
    assert study.get_trials()[0].state == TrialState.RUNNING and study.get_trials()[0].user_attrs["owner"] is None
    assert trial_runs(study)[0].info.status == "KILLED"


def die_at_once(config: WorkerConfig) -> None:
    """Replaces the work of a worker: prints an error and ends."""
    os.write(config.stderr.fileno(), b"it fell\n")
    sys.exit(3)


def test_a_sweep_whose_workers_die_ends_with_their_last_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.workers.spawn.worker_main", die_at_once)
    code, _, err = cli("sweep", write_spec())
    assert code == 1 and "workers die and no trial gets any further; the last one: it fell" in err
