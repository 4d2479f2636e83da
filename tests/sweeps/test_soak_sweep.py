"""One of four workers is killed every few seconds until the study is done: it equals the undisturbed study.

LIT_MNIST_SOAK=N does this with N trials, in a journal and in PostgreSQL, whose server is restarted meanwhile.
Without it, only the short tests of studies in PostgreSQL run.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from conftest import enter_project
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from postgres import Postgres, running_postgres
from servers import wait_for
from small import history, run_small_study, spec_text, trial_runs, write_spec
from sqlalchemy import text

from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.heartbeats import Heartbeats
from lit_mnist.sweeps.study.leases import Leases
from lit_mnist.sweeps.study.locks import study_lock
from lit_mnist.sweeps.study.retry import RetryingStorage
from lit_mnist.sweeps.study.storage import open_storage, open_study, study_names
from lit_mnist.sweeps.study.study import create_or_open_study, stored_spec

TRIALS = int(os.environ.get("LIT_MNIST_SOAK", "0"))
SEED = int(os.environ.get("LIT_MNIST_SOAK_SEED", str(random.randrange(10**6))))
EVERY = 4.0
"""Seconds between two kills, at most."""
LONG = {"data.train_per_class": 100, "data.batch_size": 5, "trainer.max_epochs": 5, "checkpoint.every_n_steps": 30}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def open_for_test() -> Iterator[Callable[[str], BaseStorage]]:
    """A function that opens storages, whose connections are closed at the end of the test."""
    storages: list[Any] = []

    def open_(url: str) -> BaseStorage:
        storages.append(open_storage(url))
        return storages[-1]

    yield open_
    for storage in storages:
        if not hasattr(storage.wrapped, "_backend"):  # a journal
            continue
        storage.wrapped._backend.scoped_session.remove()
        storage.wrapped._backend.engine.dispose()


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["journal", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_study_whose_workers_are_killed_equals_the_undisturbed_study(
    kind: str,
    open_for_test: Callable[[str], BaseStorage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    enter_project(tmp_path / "project", monkeypatch)
    server = request.getfixturevalue("postgres") if kind == "postgres" else None
    url = server.create("soak") if server else str(tmp_path / "sweeps.journal")
    monkeypatch.setenv("LIT_MNIST_STORAGE", url)
    spec = write_spec(flags=LONG, trials=TRIALS)
    command = [sys.executable, "-m", "lit_mnist.cli", "sweep", spec, "--workers", "4"]
    sweep = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    kills = _kill_until_done(sweep, server)
    assert sweep.returncode == 0 and kills > TRIALS / 2

    study = open_study(open_for_test(url), "small")
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * TRIALS
    runs = trial_runs(study)
    assert [run.data.tags["sweep.trial"] for run in runs] == [str(number) for number in range(TRIALS)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    monkeypatch.setenv("LIT_MNIST_STORAGE", str(tmp_path / "undisturbed.journal"))
    whole = run_small_study(flags=LONG, trials=TRIALS, study="whole")
    for disturbed, undisturbed in zip(runs, trial_runs(whole), strict=True):
        assert history(disturbed.info.run_id) == history(undisturbed.info.run_id), f"seed {SEED}"


def _kill_until_done(sweep: "subprocess.Popen[bytes]", server: Postgres | None) -> int:
    """Kill workers, or the process that they are forked from, and restart the server once; returns the kills."""
    rng, kills = random.Random(SEED), 0
    print(f"seed {SEED}: LIT_MNIST_SOAK_SEED={SEED} does the same again")
    while sweep.poll() is None:
        time.sleep(rng.uniform(0.3, 1) * EVERY)
        if server is not None and kills == TRIALS // 2:
            server.stop()
            time.sleep(5)
            server.start()
            server = None
        if sweep.poll() is None and (workers := psutil.Process(sweep.pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).send_signal(signal.SIGKILL)
                kills += 1
    return kills


def test_many_processes_can_open_a_new_database_at_once(
    postgres: Postgres, open_for_test: Callable[[str], BaseStorage]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(open_for_test, [postgres.create("fresh")] * 8))
    assert [study_names(storage) for storage in found] == [[]] * 8


def test_a_study_in_postgres_is_shared_and_survives_a_restart_of_the_server(
    postgres: Postgres, open_for_test: Callable[[str], BaseStorage], capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres.create("shared")
    first = create_or_open_study(open_for_test(url), parse_spec(spec_text(trials=1), "small"))
    second = open_study(open_for_test(url), "small")
    leases = Leases(first, stored_spec(first), 0, 1)
    trial = leases.acquire()
    assert trial is not None and len(second.get_trials()) == 1
    trial = leases.suggest(trial)
    postgres.stop()
    back = threading.Timer(2, postgres.start)
    back.start()
    assert second.get_trials()[0].user_attrs["point"] == trial.user_attrs["point"]
    back.join()
    with study_lock(storage_of(second), "small"):
        second.set_user_attr("written", True)
    assert first.user_attrs["written"]
    assert capsys.readouterr().err.count("is unreachable: trying again") == 1


def test_heartbeats_need_no_lock_and_continue_after_an_error(
    postgres: Postgres,
    open_for_test: Callable[[str], BaseStorage],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.study.heartbeats.HEARTBEAT_INTERVAL", 0.05)
    url = postgres.create("beats")
    study = create_or_open_study(open_for_test(url), parse_spec(spec_text(trials=1), "small"))
    leases = Leases(study, stored_spec(study), 0, 1)
    trial = leases.acquire()
    assert trial is not None
    engine = cast(RetryingStorage, storage_of(study)).engine
    assert engine is not None

    def count() -> int:
        return int(study.get_trials()[0].user_attrs.get("heartbeat", {"count": 0})["count"])

    # Another worker holds the study's lock, which may take long.
    with study_lock(open_for_test(url), "small"), Heartbeats(leases, trial):
        wait_for(lambda: count() > 1, "two heartbeats")
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE trial_user_attributes RENAME TO moved"))
        wait_for(lambda: "no heartbeat of trial 0 can be sent" in capsys.readouterr().err, "an error")
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE moved RENAME TO trial_user_attributes"))
        before = count()
        wait_for(lambda: count() > before, "a heartbeat after the error")


def test_processes_that_wait_for_a_lock_hold_no_connection(
    postgres: Postgres, open_for_test: Callable[[str], BaseStorage]
) -> None:
    url = postgres.create("waiting")
    taken: list[BaseStorage] = []
    storages = [open_for_test(url) for _ in range(4)]

    def take(storage: BaseStorage) -> None:
        with study_lock(storage, "small"):
            taken.append(storage)

    with ThreadPoolExecutor(3) as pool, study_lock(storages[0], "small"):
        for storage in storages[1:]:
            pool.submit(take, storage)
        time.sleep(0.5)
        with cast(RetryingStorage, storages[0]).engine.connect() as connection:
            query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            # Only the holder's: the others do not wait in the database.
            assert connection.execute(text(query)).scalar() == 1
        assert not taken
    assert len(taken) == 3
