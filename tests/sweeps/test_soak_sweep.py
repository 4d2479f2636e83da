"""Four workers, one of them killed every few seconds until the study is done: it is the undisturbed study.

LIT_MNIST_SOAK=N does this with N trials, on the journal and on PostgreSQL, whose server is restarted meanwhile; without
it, PostgreSQL gets a short look.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import enter_project
from optuna.trial import TrialState
from postgres import Postgres, binaries
from small import history, spec_text, trial_runs, work, write_spec

from lit_mnist.sweeps.claim import Claims
from lit_mnist.sweeps.patience import Patient
from lit_mnist.sweeps.spec import parse_spec
from lit_mnist.sweeps.storage import open_storage, open_study, study_lock
from lit_mnist.sweeps.study import spec_of, take_study

TRIALS = int(os.environ.get("LIT_MNIST_SOAK", "0"))
SEED = int(os.environ.get("LIT_MNIST_SOAK_SEED", str(random.randrange(10**6))))
EVERY = 8.0
"""Seconds between two kills, at most."""
LONG = {"data.train_per_class": 200, "data.batch_size": 5, "trainer.max_epochs": 6, "checkpoint.every_n_steps": 50}


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    if binaries() is None:
        pytest.skip("needs PostgreSQL")
    folder = tmp_path_factory.mktemp("postgres")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)  # the server is another user
    server = Postgres(folder / "server")
    server.start()
    yield server
    server.stop()


@pytest.mark.skipif(not TRIALS, reason="takes minutes: set LIT_MNIST_SOAK to a number of trials")
@pytest.mark.parametrize("kind", ["journal", "postgres"])
def test_a_study_whose_workers_are_killed_is_the_undisturbed_study(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    enter_project(tmp_path / "project", monkeypatch)
    server = request.getfixturevalue("postgres") if kind == "postgres" else None
    monkeypatch.setenv("LIT_MNIST_STORAGE", server.url if server else str(tmp_path / "sweeps.journal"))
    command = [
        sys.executable,
        "-m",
        "lit_mnist.cli",
        "sweep",
        write_spec(flags=LONG, trials=TRIALS),
        "--workers",
        "4",
    ]
    sweep = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    kills = _kill_until_done(sweep, server)
    assert sweep.returncode == 0 and kills > TRIALS / 2

    study = open_study(open_storage(None), "small")
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * TRIALS
    runs = trial_runs(study)
    assert [run.data.tags["sweep.trial"] for run in runs] == [str(number) for number in range(TRIALS)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    monkeypatch.setenv("LIT_MNIST_STORAGE", str(tmp_path / "undisturbed.journal"))
    whole = work(flags=LONG, trials=TRIALS, study="whole")
    for disturbed, undisturbed in zip(runs, trial_runs(whole), strict=True):
        assert history(disturbed.info.run_id) == history(undisturbed.info.run_id), f"seed {SEED}"


def _kill_until_done(sweep: "subprocess.Popen[bytes]", server: Postgres | None) -> int:
    """Kill a worker every few seconds, and restart the server once; how many were killed."""
    chance, kills = random.Random(SEED), 0
    print(f"seed {SEED}: LIT_MNIST_SOAK_SEED={SEED} does the same again")
    while sweep.poll() is None:
        time.sleep(chance.uniform(0.3, 1) * EVERY)
        if server is not None and kills == TRIALS // 2:
            server.stop()
            time.sleep(5)
            server.start()
            server = None
        if sweep.poll() is None and (workers := psutil.Process(sweep.pid).children()):
            chance.choice(workers).send_signal(signal.SIGKILL)
            kills += 1
    return kills


def test_a_study_in_postgres_is_shared_and_outlives_a_restart_of_the_server(
    postgres: Postgres, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIT_MNIST_STORAGE", postgres.url)
    study = take_study(open_storage(None), parse_spec(spec_text(study="shared", trials=2), "shared"))
    other = open_study(open_storage(None), "shared")
    taken = [Claims(each, spec_of(study), worker, 1).take() for worker, each in enumerate((study, study))]
    assert [trial.number for trial in taken if trial] == [0, 0], "one process takes again what is its own"
    postgres.stop()
    back = threading.Timer(2, postgres.start)
    back.start()
    assert len(other.get_trials()) == 1
    back.join()
    with study_lock(other._storage, "shared"):
        other.set_user_attr("written", True)
    assert study.user_attrs["written"]
    assert isinstance(other._storage, Patient) and other._storage.outages
    assert capsys.readouterr().err.count("is away: waiting for it") == 1


def test_many_first_starts_at_once_make_one_database(postgres: Postgres) -> None:
    url = postgres.url.replace("/postgres", "/template1") if False else postgres.url
    errors: list[Exception] = []

    def start() -> None:
        try:
            open_storage(url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
