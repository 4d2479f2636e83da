"""How a study in PostgreSQL scales: 64 workers on one study, and one worker on a study of 10,000 trials.

The workers' trials sleep for two seconds instead of training, 16 at a time, so that two cores are enough. All else
works as in `lit-mnist sweep`: leases, heartbeats, an MLflow run on a server for each trial.
"""

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any, cast

import psycopg
from sqlalchemy import event, text

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from postgres import Postgres
from servers import Server

from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study import leases as leases_module
from lit_mnist.sweeps.study.heartbeats import Heartbeats
from lit_mnist.sweeps.study.leases import Leases
from lit_mnist.sweeps.study.retry import RetryingStorage
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import COMPLETE, create_or_open_study, stored_spec
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import URI, import_mlflow

SECONDS = 2.0
"""Length of a trial."""
AT_A_TIME = 16
COPIED = ("trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes")
"""Optuna's tables with rows for each trial, besides `trials`."""
SPEC = """\
study: bench
config: zhang/cnn
metric: val/acc
direction: maximize
sampler: tpe
trials: {trials}
space:
  model.lr: {{low: 1.0e-4, high: 0.1, log: true}}
  model.dropout: {{low: 0.0, high: 0.5}}
  model.weight_decay: {{low: 1.0e-6, high: 1.0e-2, log: true}}
  data.batch_size: {{choices: [16, 32, 64]}}
"""


def bench_workers(workers: int = 64, trials: int = 192, size: int = 10_000) -> None:
    """Print the cost of taking a trial, and how a study scales with the number of workers and of trials.

    Args:
        workers: Processes that work on one study.
        trials: Trials that they carry out.
        size: Trials of the large study.

    """
    import_mlflow()  # once, before the workers are forked
    with _servers() as (postgres, mlflow):
        os.environ[URI] = mlflow.uri
        statements, held, cpu = lease_cost(postgres)
        print(f"taking a trial, under the study's lock: {min(statements)} to {max(statements)} statements,"
              f" {1000 * held:.0f} ms, {1000 * cpu:.0f} ms of CPU", flush=True)  # fmt: skip
        one = run_workers(postgres, "one", 1, 8)
        many = run_workers(postgres, "many", workers, trials)
        print(f"{workers} workers on one study in PostgreSQL, trials of {SECONDS:g} s, {AT_A_TIME} at a time:")
        print(f"  trials a second: {many['rate']:.2f}, one worker {one['rate']:.2f}")
        print(f"  connections held: {many['connections']} at most, {many['resting']} in the median; one worker"
              f" {one['connections']}")  # fmt: skip
        # Three of PostgreSQL's connections are kept for its administrator.
        print(f"  workers that 100 connections are enough for: {97 * workers // many['connections']}")
        print(f"  waiting for the study's lock: {many['waiting']:.1%} of the workers' time, one worker"
              f" {one['waiting']:.1%}", flush=True)  # fmt: skip
        del os.environ[URI]
        first, later = large_study(postgres, size)
    print(f"taking a trial with TPE from a study of {size:,}, seconds in all and of CPU:"
          f" {later[0]:.2f} and {later[1]:.2f}; a worker's first {first[0]:.1f} and {first[1]:.1f}")  # fmt: skip
    print(f"load average {os.getloadavg()[0]:.1f}")


def lease_cost(postgres: Postgres, times: int = 21) -> tuple[list[int], float, float]:
    """Let one worker take a new study's trials, each of which ends at once.

    Returns:
        SQL statements under the lock for each trial, without the worker's first one, which needs more of them; and
        the medians of the seconds that the lock was held and of this process's CPU time in them.

    """
    url = postgres.create("lease")
    create_or_open_study(open_storage(url), parse_spec(SPEC.format(trials=times + 1), "bench"), 1)
    study = open_study(open_storage(url), "bench")
    leases = Leases(study, stored_spec(study), 0, 1)
    count, measured = 0, list[tuple[int, float, float]]()

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    @contextlib.contextmanager
    def measured_lock(storage: Any, name: str) -> Iterator[Any]:
        with study_lock(storage, name) as lock:
            before, start, cpu = count, time.perf_counter(), time.process_time()
            yield lock
            measured.append((count - before, time.perf_counter() - start, time.process_time() - cpu))

    event.listen(cast(RetryingStorage, leases.storage).engine, "before_cursor_execute", add)
    study_lock = leases_module.study_lock
    for _ in range(times):
        leases_module.study_lock = measured_lock
        leased = leases.acquire()
        leases_module.study_lock = study_lock
        assert leased is not None
        trial = leases.suggest(leased)
        leases.tell(trial, [trial.params["model.lr"]], COMPLETE)
    statements, held, cpu = zip(*measured[1:], strict=True)
    return list(statements), statistics.median(held), statistics.median(cpu)


def run_workers(postgres: Postgres, name: str, workers: int, trials: int) -> dict[str, Any]:
    """Let `workers` processes work on a new study; returns the measurements."""
    url = postgres.create(name)
    storage = open_storage(url)
    create_or_open_study(storage, parse_spec(SPEC.format(trials=trials), "bench"), 1)
    cast(Any, storage).engine.dispose()  # no process may use the connections of the one that forked it
    context = multiprocessing.get_context("fork")
    slots, results = context.Semaphore(AT_A_TIME), context.SimpleQueue()
    processes = [context.Process(target=_work, args=(url, number, slots, results)) for number in range(workers)]
    counts: list[int] = []
    done = threading.Event()
    for process in processes:
        process.start()
    watch = threading.Thread(target=_count_connections, args=(postgres, name, counts, done))
    watch.start()
    found = [results.get() for _ in processes]
    done.set()
    watch.join()
    for process in processes:
        process.join()
    ended = open_study(open_storage(url), "bench").trials
    assert len(ended) == trials and all(trial.state == COMPLETE for trial in ended)
    span = max(t.datetime_complete for t in ended) - min(t.datetime_start for t in ended)
    return {
        "rate": trials / span.total_seconds(),
        "connections": max(counts),
        "resting": round(statistics.median(counts)),
        "waiting": sum(waited for waited, _ in found) / sum(total for _, total in found),
    }


def _work(url: str, number: int, slots: Semaphore, results: "SimpleQueue[tuple[float, float]]") -> None:
    """Work as `sweeps.workers.worker` does, with sleep for training; reports seconds of waiting and in all."""
    waited = 0.0
    study_lock = leases_module.study_lock

    @contextlib.contextmanager
    def timed_lock(storage: Any, name: str) -> Iterator[Any]:
        nonlocal waited
        start = time.perf_counter()
        with study_lock(storage, name) as lock:
            waited += time.perf_counter() - start
            yield lock

    leases_module.study_lock = timed_lock
    study = open_study(open_storage(url), "bench")
    leases = Leases(study, stored_spec(study), number, 1)
    start = time.perf_counter()
    while (leased := leases.acquire()) is not None:
        with Heartbeats(leases, leased):
            trial = leases.suggest(leased)
            with slots, open_run("bench", f"trial {trial.number}", system_metrics=False, tags={}) as run:
                time.sleep(SECONDS)
                run.log_metrics({"val/acc": trial.params["model.lr"]}, 0)
            leases.tell(trial, [trial.params["model.lr"]], COMPLETE)
    results.put((waited, time.perf_counter() - start))


def _count_connections(postgres: Postgres, database: str, counts: list[int], done: threading.Event) -> None:
    """Count the connections to the database ten times a second."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    with psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres", autocommit=True) as connection:
        while not done.wait(0.1):
            row = connection.execute(query, (database,)).fetchone()
            counts.append(row[0] if row else 0)


def large_study(postgres: Postgres, size: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Take trials from a study with `size` of them.

    Returns:
        Seconds for a worker's first trial, in all and of this process's CPU; and the medians of twenty more.

    """
    url = postgres.create("large")
    storage = cast(RetryingStorage, open_storage(url))
    study = create_or_open_study(cast(Any, storage), parse_spec(SPEC.format(trials=size + 100), "bench"), 1)
    leases = Leases(study, stored_spec(study), 0, 1)
    _take(leases)
    assert storage.engine is not None
    # Written with SQL, because Optuna needs some 10 ms for a trial.
    with storage.engine.begin() as connection:
        connection.execute(text("INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)"
            " SELECT n, study_id, state, datetime_start, datetime_complete FROM trials,"
            f" generate_series(1, {size - 1}) AS n"))  # fmt: skip
        for table in COPIED:
            columns = list(connection.execute(text(f"SELECT * FROM {table} LIMIT 0")).keys())
            names = [name for name in columns if name not in (f"{table[:-1]}_id", "param_id", "trial_value_id",
                     "trial_intermediate_value_id", "trial_user_attribute_id", "trial_id")]  # fmt: skip
            # Random values, because TPE needs trials that differ.
            values = [f"{name} * random()" if name in ("param_value", "value") and table != COPIED[3] else name
                      for name in names]  # fmt: skip
            connection.execute(text(f"INSERT INTO {table} (trial_id, {', '.join(names)}) SELECT copy.trial_id,"
                f" {', '.join(values)} FROM {table}, trials AS copy WHERE copy.number > 0"))  # fmt: skip
    fresh = open_study(open_storage(url), "bench")
    leases = Leases(fresh, stored_spec(fresh), 0, 1)
    first = _take(leases)
    wall, cpu = zip(*(_take(leases) for _ in range(20)), strict=True)
    return first, (statistics.median(wall), statistics.median(cpu))


def _take(leases: Leases) -> tuple[float, float]:
    """Take a trial with all its parameters, and end it: returns the seconds and the CPU seconds of taking it."""
    start, cpu = time.perf_counter(), time.process_time()
    leased = leases.acquire()
    assert leased is not None
    trial = leases.suggest(leased)
    took = time.perf_counter() - start, time.process_time() - cpu
    leases.tell(trial, [trial.params["model.lr"]], COMPLETE)
    return took


@contextlib.contextmanager
def _servers() -> Iterator[tuple[Postgres, Server]]:
    """PostgreSQL and an MLflow server, in a project of their own."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL refuses to run as root, so it may run as another user
        (folder / "pyproject.toml").touch()
        postgres, mlflow = Postgres(folder / "postgres"), Server(folder)
        postgres.start()
        try:
            mlflow.start()
            yield postgres, mlflow
        finally:
            mlflow.kill()
            postgres.stop()


if __name__ == "__main__":
    bench_workers()
