"""Leases of trials, without training: what is written to the study, and what counts as a trial's progress."""

import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import Trial
from small import spec_text

from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.heartbeats import Heartbeats
from lit_mnist.sweeps.study.leases import MAX_DEATHS, Leases, reason_to_give_up
from lit_mnist.sweeps.study.locks import one_host
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import TIME_SPENT, add_time_spent, create_or_open_study, stored_spec
from lit_mnist.sweeps.study.summary import UNREPORTED
from lit_mnist.tracking.process import find_process, this_boot, this_host


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    storage = open_storage(str(tmp_path / "sweeps.journal"))
    return create_or_open_study(storage, parse_spec(spec_text(trials=1, repeats=2), "small"))


def acquire(study: optuna.Study) -> Trial:
    trial = Leases(study, stored_spec(study), worker=0, validations=1).acquire()
    assert trial is not None
    return trial


def test_options_of_the_command_line_are_stored_in_the_study(
    tmp_path: Path,
) -> None:
    """Workers and a sweep that continues the study by its name read them there, until a command replaces them."""
    storage, spec = open_storage(str(tmp_path / "sweeps.journal")), parse_spec(spec_text(trials=1), "small")
    study = create_or_open_study(storage, spec, trials=4, keep="all")
    asked = stored_spec(study)
    assert (asked.trials, asked.keep_checkpoints) == (4, "all")
    again = stored_spec(create_or_open_study(storage, asked))
    assert (again.trials, again.keep_checkpoints) == (4, "all")
    reset = stored_spec(create_or_open_study(storage, spec))
    assert (reset.trials, reset.keep_checkpoints) == (1, "best")


def test_the_times_that_two_sweeps_spend_on_a_study_are_added(study: optuna.Study, tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def spend(_: int) -> None:
        own = open_study(open_storage(str(tmp_path / "sweeps.journal")), "small")
        for _ in range(10):
            together.wait()
            add_time_spent(own, 1.0)

    with ThreadPoolExecutor(2) as sweeps:
        list(sweeps.map(spend, range(2)))
    assert study.user_attrs[TIME_SPENT] == 20


def test_workers_of_one_machine_write_no_heartbeats_to_the_journal(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.study.heartbeats.HEARTBEAT_INTERVAL", 0.01)
    trial, journal = acquire(study), tmp_path / "sweeps.journal"
    written = journal.stat().st_size
    with Heartbeats(Leases(study, stored_spec(study), worker=0, validations=1), trial):
        time.sleep(0.5)
    assert journal.stat().st_size == written


@pytest.mark.parametrize("progresses", [False, True])
def test_a_trial_whose_later_seeds_get_further_is_not_given_up(study: optuna.Study, progresses: bool) -> None:
    for validations in range(MAX_DEATHS + 1):
        trial = acquire(study)
        if progresses:
            trial.set_user_attr(UNREPORTED, {"1": validations})  # as `Reporter` counts them, for the second seed
        # Its worker dies: no process has this number and start time.
        trial.set_user_attr("owner", {**trial.user_attrs["owner"], "process": "1@0.00"})
    assert trial.number == 0 and (reason_to_give_up(acquire(study)) is None) == progresses


def test_a_live_worker_of_an_earlier_version_keeps_its_trial_and_its_journal(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a worker sends no heartbeats to a journal, and its lease lacks the start time of process 1."""
    monkeypatch.setattr("lit_mnist.sweeps.study.leases.HEARTBEAT_TIMEOUT", 0.0)
    if "." not in this_boot():
        pytest.skip("the start of process 1 cannot be read here")
    leases, trial = Leases(study, stored_spec(study), worker=0, validations=1), acquire(study)
    earlier = {**trial.user_attrs["owner"], "boot": this_boot().rpartition(".")[0]}
    # The worker is alive, and not this process.
    with subprocess.Popen(["sleep", "600"]) as worker:
        try:
            trial.set_user_attr("owner", {**earlier, "process": find_process(worker.pid)})
            assert [leases.acquire(), leases.acquire()] == [None, None]
            stored = {"host": this_host(), "boot": earlier["boot"]}
            (tmp_path / ".sweeps.journal.host").write_text(json.dumps(stored))
            with one_host(storage_of(study)):
                pass
        finally:
            worker.kill()
    trial.set_user_attr("owner", {**earlier, "process": "1@0.00"})
    assert leases.acquire() is not None
