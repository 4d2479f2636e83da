"""A worker trains the trials of a study, in this process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch
from conftest import Cli, enter_project
from lightning.pytorch import Callback
from optuna.trial import TrialState
from servers import wait_for
from small import history, run_small_study, spec_text, trial_runs, write_spec

from lit_mnist.cli import main
from lit_mnist.errors import Interrupted, UserError
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.search.optuna_private import load_trial, storage_of
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.leases import HEARTBEAT_TIMEOUT, Leases, OwnerWatch
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import create_or_open_study, stored_spec
from lit_mnist.sweeps.study.study_run import study_run
from lit_mnist.sweeps.study.trial_runs import TrialRuns
from lit_mnist.sweeps.workers.trial import PrunedError, TrialWork, plan_trials
from lit_mnist.sweeps.workers.worker import work_on
from lit_mnist.tracking.process import this_host, this_process
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.fit import fit

LR = {"low": 1e-3, "high": 0.1, "log": True}


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project that all tests of this file share, since a new store takes longer than a trial."""
    with pytest.MonkeyPatch.context() as patch:
        yield enter_project(tmp_path_factory.mktemp("sweeps") / "project", patch)


@pytest.fixture(autouse=True)
def own_storage(shared_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a storage of studies of its own."""
    monkeypatch.setenv("LIT_MNIST_STORAGE", str(tmp_path / "sweeps.journal"))


def dead_process() -> str:
    """A process that has ended, as the owner of a trial."""
    process = subprocess.Popen(["true"])
    process.wait()
    return f"{process.pid}@{time.time():.2f}"


def outcomes(study: optuna.Study) -> list[object]:
    return [(trial.params, trial.values, trial.state) for trial in study.get_trials()]


def test_two_trials_and_two_more_equal_four_trials_in_one_sweep() -> None:
    search = {
        "sampler": {"name": "tpe", "n_startup_trials": 1},
        "space": {"model.lr": LR, "model.dropout": {"low": 0.0, "high": 0.5}},
    }
    whole = run_small_study(**search, study="whole", trials=4)
    run_small_study(**search, trials=2)
    parts = run_small_study(**search, trials=4)
    assert outcomes(parts) == outcomes(whole) and len(outcomes(whole)) == 4
    assert [run.data.tags["sweep.trial"] for run in trial_runs(parts)] == [str(i) for i in range(4)]


def test_a_trial_that_diverges_fails_with_its_reason_and_the_others_go_on() -> None:
    study = run_small_study(space={"model.lr": {"choices": [1e30, 0.01]}}, sampler="grid", trials=2)
    failed, done = sorted(study.get_trials(), key=lambda trial: -trial.params["model.lr"])
    assert (failed.state, done.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert "train/loss is nan at step" in failed.user_attrs["reason"]
    runs = {run.data.tags["sweep.trial"]: run for run in trial_runs(study)}
    assert runs[str(failed.number)].info.status == "FAILED"
    assert runs[str(failed.number)].data.tags["sweep.state"] == "failed"
    assert "train/loss is nan" in runs[str(failed.number)].data.tags["sweep.reason"]
    assert runs[str(done.number)].data.tags["sweep.state"] == "complete"


def test_a_pruned_trial_ends_early_with_its_reason() -> None:
    study = run_small_study(
        metric="val/loss", direction="minimize", trials=2, sampler="grid",
        points=[{"model.lr": 0.01}], space={"model.lr": {"choices": [0.01, 1e-7]}},
        pruner={"name": "median", "n_startup_trials": 1},
        flags={"trainer.max_epochs": 3, "data.train_per_class": 40, "data.batch_size": 10},
    )  # fmt: skip
    whole, pruned = study.get_trials()
    assert (whole.state, pruned.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert len(whole.intermediate_values) == 3 and len(pruned.intermediate_values) == 1
    assert pruned.user_attrs["reason"].startswith("at epoch 1 with val/loss 2.3")
    run = trial_runs(study)[1]
    assert run.info.status == "FINISHED" and run.data.tags["sweep.state"] == "pruned"
    assert run.data.metrics["epoch"] == 0


def test_repeats_are_grouped_with_mean_and_interval() -> None:
    study = run_small_study(repeats=2, trials=1, metric="val/loss", direction="minimize")
    (trial,) = study.get_trials()
    values = [value for (value,) in trial.user_attrs["values"]]
    assert trial.value == pytest.approx(sum(values) / 2) and values[0] != values[1]
    assert [run.info.run_id for run in trial_runs(study)] == trial.user_attrs["runs"]
    (group,) = {run.data.tags["mlflow.parentRunId"] for run in trial_runs(study)}
    found = connect(find_store()).get_run(group)
    assert found.data.tags["mlflow.parentRunId"] == study.user_attrs["run_id"]
    assert found.data.metrics["val/loss"] == pytest.approx(trial.value)
    assert found.data.metrics["val/loss/interval"] > 0 and "val/acc" in found.data.metrics
    # No metrics that would be a chart with a single dot.
    assert not {"train/loss", "epoch", "lr", "val/acc/interval"} & set(found.data.metrics)
    assert float(found.data.params["lr"]) == trial.params["model.lr"]
    assert found.info.run_name == f"00 lr={trial.params['model.lr']:.3g}" and trial.user_attrs["group"] == group
    assert [run.info.run_name[:5] for run in trial_runs(study)] == ["00 s0", "00 s1"]


def test_a_network_that_is_too_large_is_not_trained() -> None:
    study = run_small_study(
        space={"model.channels": {"choices": [[2, 2], [40, 40]]}}, sampler="grid", trials=2,
        constraints=[{"metric": "parameters", "at_most": 10_000}],
        objectives=[{"metric": "val/acc", "direction": "maximize"}, {"metric": "parameters", "direction": "minimize"}],  # noqa: E501
        metric=None, direction=None,
    )  # fmt: skip
    small, large = sorted(study.get_trials(), key=lambda trial: len(str(trial.user_attrs["point"])))
    assert small.state == TrialState.COMPLETE and small.values[1] < 10_000
    assert large.state == TrialState.PRUNED and "more than 10,000" in large.user_attrs["reason"]
    runs = {run.data.tags["sweep.state"]: run.data.metrics for run in trial_runs(study)}
    assert "train/loss" in runs["complete"] and "train/loss" not in runs["pruned"]


@pytest.fixture
def training_images(tmp_path: Path, full_data: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with full MNIST, without the test images."""
    raw = tmp_path / "images" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in Path(full_data).glob("MNIST/raw/train-*"):
        (raw / path.name).symlink_to(path)
    monkeypatch.setenv("LIT_MNIST_DATA", str(tmp_path / "images"))
    return tmp_path / "images"


def test_a_sweep_never_reads_a_test_image(training_images: Path) -> None:
    study = run_small_study(trials=1, flags={"data": "MNISTDataModule"})
    assert study.get_trials()[0].state == TrialState.COMPLETE


@pytest.mark.parametrize("devices", [1, 2])
def test_a_trial_whose_data_were_missing_is_trained_when_they_are_back(
    training_images: Path, devices: int
) -> None:
    flags = {"data": "MNISTDataModule", "trainer.devices": devices, "trainer.accelerator": "cpu",
             "trainer.strategy": "auto" if devices == 1 else "ddp"}  # fmt: skip
    away = training_images.rename(training_images.with_name("away"))
    with pytest.raises(UserError, match="MNIST not found"):
        run_small_study(trials=1, flags=flags)
    away.rename(training_images)
    study = run_small_study(trials=1, flags=flags)
    (trial,) = study.get_trials()
    assert trial.state == TrialState.COMPLETE and len(trial_runs(study)) == 1


def test_a_study_whose_space_has_changed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    create_or_open_study(open_storage(None), parse_spec(spec_text(), "small"))
    assert main(["sweep", write_spec(space={"model.lr": {**LR, "high": 0.2}})]) == 2
    err = capsys.readouterr().err
    assert "space model.lr high is 0.1 there and 0.2 here; give the spec another `study`" in err


def test_the_trial_of_a_live_worker_is_not_taken_over_and_that_of_a_dead_one_is() -> None:
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=1), "small"))
    trial = Leases(study, stored_spec(study), 0, 1).acquire()
    assert trial is not None
    other = Leases(open_study(open_storage(None), "small"), stored_spec(study), 1, 1)
    other.owner["process"] = "1@0.00"
    assert other.acquire() is None
    trial.set_user_attr("owner", {**trial.user_attrs["owner"], "process": dead_process()})
    again = other.acquire()
    assert again is not None and again.number == 0 and again.user_attrs["owner"]["worker"] == 1


def test_a_worker_of_another_host_is_dead_when_its_heartbeat_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=1), "small"))
    trial = Leases(study, stored_spec(study), 0, 1).acquire()
    assert trial is not None
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    watch = OwnerWatch(storage_of(study))

    def is_dead(count: int) -> bool:
        trial.set_user_attr("owner", {"host": "another", "process": this_process(), "worker": 0})
        trial.set_user_attr("heartbeat", {"process": this_process(), "count": count})
        return watch.is_dead(study.get_trials()[0])

    assert this_host() != "another" and not is_dead(1)
    clock += HEARTBEAT_TIMEOUT - 1
    assert not is_dead(2)
    clock += HEARTBEAT_TIMEOUT - 1
    assert not is_dead(2)
    storage_of(study).outages += 1  # while the storage was unreachable, no heartbeat could arrive
    clock += 2
    assert not is_dead(2)
    clock += HEARTBEAT_TIMEOUT + 1
    assert is_dead(2)


def test_a_trial_without_parameters_of_a_killed_worker_is_taken_over() -> None:
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=1), "small"))
    storage_of(study).create_new_trial(study._study_id)
    study = run_small_study(trials=1)
    (trial,) = study.get_trials()
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["point"].keys() == {"model.lr"}


class TakesOver(Callback):
    """Simulates another worker that takes over the trial at one moment of its training."""

    moment = ""

    def on_train_start(self, *args: object) -> None:
        self.take("start")

    def on_train_end(self, *args: object) -> None:
        self.take("end")

    def take(self, moment: str) -> None:
        if moment == self.moment:
            storage = open_storage(None)
            [trial] = open_study(storage, "small").get_trials()
            storage.set_trial_user_attr(
                trial._trial_id, "owner", {**trial.user_attrs["owner"], "process": "1@0.00"}
            )


class Exited(BaseException):
    """Raised instead of calling `os._exit`, which would end the tests."""


@pytest.mark.parametrize(("moment", "reports"), [("start", 0), ("end", 1)])
def test_a_worker_whose_trial_was_taken_over_neither_reports_nor_ends_it(
    moment: str, reports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_exited(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr("lit_mnist.sweeps.study.leases.os._exit", raise_exited)
    monkeypatch.setattr(TakesOver, "moment", moment)
    with pytest.raises(Exited, match="3"):
        run_small_study(trials=1, flags={"trainer.callbacks": "test_work.TakesOver"})
    [trial] = open_study(open_storage(None), "small").get_trials()
    assert trial.state == TrialState.RUNNING and trial.user_attrs["owner"]["process"] == "1@0.00"
    assert len(trial.intermediate_values) == reports


KILLED_BEFORE_FINISHED = """
import os, signal, sys
from lit_mnist.tracking.journal.mlflow_writer import MLflowWriter
from small import run_small_study

send = MLflowWriter._send
def send_or_die(self, kind, items):
    if kind == "status" and items[0]["status"] == "FINISHED":
        os.kill(os.getpid(), signal.SIGKILL)
    send(self, kind, items)

MLflowWriter._send = send_or_die
run_small_study(trials=1)
"""


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_worker_killed_before_its_run_is_finished_in_the_store_costs_nothing() -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_FINISHED], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    study, whole = run_small_study(trials=1), run_small_study(trials=1, study="whole")
    assert outcomes(study) == outcomes(whole) and study.get_trials()[0].state == TrialState.COMPLETE
    (run,), (other,) = trial_runs(study), trial_runs(whole)
    assert run.info.status == "FINISHED" and history(run.info.run_id) == history(other.info.run_id)


def test_a_trial_that_kills_its_workers_fails_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_mnist.sweeps.study.leases.MAX_DEATHS", 3)
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=2), "small"))
    for _ in range(3):  # workers that take the trial and die
        trial = Leases(study, stored_spec(study), 0, 1).acquire()
        assert trial is not None and trial.number == 0
        trial.set_user_attr("owner", {**trial.user_attrs["owner"], "process": dead_process()})
    study = run_small_study(trials=2)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.get_trials()[0].user_attrs["reason"].startswith("its worker was killed 3 times")
    assert [run.info.status for run in trial_runs(study)] == ["FAILED", "FINISHED"]


def test_a_finished_study_without_a_summary_gets_one(cli: Cli) -> None:
    study = run_small_study(trials=2)
    client = connect(find_store())
    assert "sweep.result" not in client.get_run(study.user_attrs["run_id"]).data.tags
    for _ in range(2):
        code, out, _ = cli("sweep", write_spec(trials=2))
        assert code == 0 and "finished, nothing left to do" in out
        run = client.get_run(study.user_attrs["run_id"])
        assert (
            run.info.status == "FINISHED" and f"(trial {study.best_trial.number})" in run.data.tags["sweep.result"]
        )
        assert [item.path for item in client.list_artifacts(run.info.run_id)] == [
            "figures",
            "spec.yaml",
            "summary.json",
        ]


def test_the_best_configuration_repeats_a_trial_with_its_number_of_threads(cli: Cli) -> None:
    before = torch.get_num_threads()
    study = run_small_study(trials=1, metric="val/loss", direction="minimize")  # with one thread
    assert cli("sweep", "best", "small")[0] == 0
    torch.set_num_threads(2)  # which would round sums differently
    result = fit(["--config", "small_best.yaml"])
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    assert result is not None and result.metrics["val/loss"] == study.best_value


def test_trials_are_compared_by_the_objective_of_their_study(cli: Cli) -> None:
    # The model's own monitor is an accuracy.
    study = run_small_study(trials=5, metric="val/loss", direction="minimize")
    order = sorted(study.get_trials(), key=lambda trial: trial.value or 0)
    code, out, _ = cli("compare", "--study", "small")
    rows = [line for line in out.splitlines() if line.startswith("trial ")]
    assert code == 0 and [row.split()[1] for row in rows] == [str(trial.number) for trial in order]


def test_no_password_of_a_storage_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "--storage=postgresql+psycopg://me:open-sesame@host/db"
    monkeypatch.setattr("sys.argv", ["lit-mnist", "sweep", "small.yaml", url])
    (run,) = trial_runs(run_small_study(trials=1))
    assert run.data.tags["mlflow.source.name"].endswith("postgresql+psycopg://me:***@host/db")
    assert not [path for path in Path("mlruns").rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]


def test_a_signal_before_the_next_trial_ends_the_worker() -> None:
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(), "small"))
    with SignalWatch() as watch, pytest.raises(Interrupted):
        watch.received = 15
        work_on(study, watch)
    assert not study.get_trials()


def test_the_run_of_a_trials_seeds_is_killed_by_a_signal_and_running_when_resumed() -> None:
    text = spec_text(repeats=2, trials=1, flags={"trainer.max_epochs": 500})
    study, client = create_or_open_study(open_storage(None), parse_spec(text, "small")), connect(find_store())

    def status_of_group() -> str:
        return client.get_run(study.get_trials()[0].user_attrs["group"]).info.status

    seen = []

    def interrupt() -> None:
        wait_for(lambda: any(trial.intermediate_values for trial in study.get_trials()), "a validation")
        seen.append(status_of_group())
        watch.received = signal.SIGTERM

    with study_run(study, stored_spec(study)), SignalWatch() as watch:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Interrupted):
            work_on(study, watch)
        thread.join()
    seen.append(status_of_group())
    TrialRuns(study, load_trial(study, 0), stored_spec(study).objectives).open_group()
    assert [*seen, status_of_group()] == ["RUNNING", "KILLED", "RUNNING"]


@pytest.mark.parametrize("keep", [None, "all", "none"])
def test_finished_trials_keep_the_checkpoints_that_are_asked_for(
    keep: str | None, project: Path, cli: Cli
) -> None:
    study = run_small_study(
        trials=2,
        space={"model.lr": {"low": 1e-7, "high": 0.1, "log": True}},
        points=[{"model.lr": 0.01}, {"model.lr": 1e-7}],
        pruner={"name": "median", "n_startup_trials": 1},
        flags={"trainer.max_epochs": 2},
        keep_checkpoints=keep,
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    client, ids = connect(find_store()), [run.info.run_id for run in trial_runs(study)]
    kept = [
        sorted(Path(item.path).name for item in client.list_artifacts(run_id, "checkpoints")) for run_id in ids
    ]
    pages = [client.get_run(run_id).data.tags["mlflow.note.content"] for run_id in ids]
    assert all((f"fit --resume {ids[i]}" in pages[i]) == (keep == "all") for i in range(2))
    both = ["best.ckpt", "last.ckpt"]
    assert kept == {None: [["best.ckpt"], []], "all": [both, both], "none": [[], []]}[keep]
    assert cli("sweep", "best", "small")[0] == 0
    code, out, err = cli("validate", "--run", ids[0])
    assert (code, "val/acc" in out) == ((0, True) if keep != "none" else (1, False)), err
    history_before = history(ids[0])
    code, out, err = cli("fit", "--resume", ids[0], "--trainer.max_epochs", "3")
    assert code == (0 if keep == "all" else 1) and ("kept no checkpoint to resume from" in err) == (keep != "all")
    assert keep == "all" or history(ids[0]) == history_before


def test_wilcoxon_prunes_a_trial_after_as_many_seeds_as_are_needed() -> None:
    study = run_small_study(
        metric="val/loss", direction="minimize", trials=2, sampler="grid", repeats=5, pruner="wilcoxon",
        points=[{"model.lr": 0.01}], space={"model.lr": {"choices": [0.01, 1e-7]}},
        flags={"data.train_per_class": 40, "data.batch_size": 10},
    )  # fmt: skip
    best, pruned = study.get_trials()
    assert (best.state, pruned.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert list(best.intermediate_values.values()) == [value for (value,) in best.user_attrs["values"]]
    # Four of four worse: p = 1/16, the first below the threshold of 0.1.
    assert list(pruned.intermediate_values) == [0, 1, 2, 3] and len(pruned.user_attrs["runs"]) == 4
    assert pruned.user_attrs["reason"] == "after seed 3: 4 seeds are worse than those of the best trial"
    # If the worker that decided this was killed, the one that takes over the trial does not go on with it.
    spec = stored_spec(study)
    taken = TrialWork(Leases(study, spec, 0, 1), load_trial(study, 1), SignalWatch(), plan_trials(spec))
    taken.metrics = [{"val/loss": value} for value in pruned.intermediate_values.values()]
    with pytest.raises(PrunedError, match="after seed 3"):
        taken._prune_by_seeds(3)
