"""A run that is killed after its checkpoint and resumed with another configuration has only the new curve."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MINI, Cli, enter_project
from lightning.pytorch import Callback, Trainer
from mlflow import MlflowClient
from postgres import running_postgres
from servers import Server, stored_history
from test_sync import killed_run

from lit_mnist.errors import Interrupted
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.folder import run_folders
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.points import REWOUND, Rewind, add_to_tag, stored_points, tagged_rewinds
from lit_mnist.tracking.queries.lookup import local_folder
from lit_mnist.tracking.run import Run, clean_folder, open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.fit import fit

CHECKPOINT, OLD_END, NEW_END = 40, 60, 80


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project shared by these tests, since creating MLflow's database takes longer than any of them."""
    with pytest.MonkeyPatch.context() as patch:
        yield enter_project(tmp_path_factory.mktemp("rewind"), patch)


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running_server: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running_server.uri)
    return running_server


@pytest.fixture
def postgres(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with running_postgres() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.create("mlflow"))
        yield


def _log(run: Run, steps: range, offset: float) -> None:
    for step in steps:
        run.log_metrics({"loss": offset + step / 2, "lr": offset}, step)


def _killed_beyond_its_checkpoint() -> Run:
    """A killed run with old points up to OLD_END in its store, and with metrics that training does not log."""
    with pytest.raises(KeyboardInterrupt), open_run("rewound", system_metrics=False) as run:
        run.log_text("lr: 0", "config.yaml")
        _log(run, range(OLD_END), 0)
        run.log_metrics({"late": 1.0}, OLD_END)
        run.log_metrics({"test/acc": 0.5, "system/load": 0.5}, OLD_END)
        raise KeyboardInterrupt
    return run


def _expected_curve(end: int) -> list[tuple[int, float]]:
    """The old points up to the checkpoint, and then the new ones."""
    return [(step, (100 if step > CHECKPOINT else 0) + step / 2) for step in range(end)]


def _check_one_curve(run: Run) -> None:
    assert stored_history(run.client, run.id, "loss") == _expected_curve(NEW_END)
    metrics = run.data().data.metrics
    assert metrics == {"loss": 100 + (NEW_END - 1) / 2, "lr": 100.0, "test/acc": 0.5, "system/load": 0.5}
    assert REWOUND not in run.data().data.tags


def _resume_with_another_configuration(run_id: str, end: int = NEW_END) -> Run:
    with open_run("", run_id=run_id, resume=True, system_metrics=False) as run:
        run.rewind(CHECKPOINT)
        assert run.history("loss") == _expected_curve(CHECKPOINT + 1)
        _log(run, range(CHECKPOINT + 1, end), 100)
        assert run.history("loss") == _expected_curve(end)
    return run


def test_a_database_holds_only_the_new_curve(project: Path, cli: Cli) -> None:
    run = _resume_with_another_configuration(_killed_beyond_its_checkpoint().id)
    _check_one_curve(run)
    # Sending everything again, as after the loss of the mark, gives the same state.
    (run.folder / "spool.sent").unlink()
    assert cli("sync", run.id)[0] == 0
    _check_one_curve(run)


def test_a_postgresql_database_holds_only_the_new_curve(postgres: None) -> None:
    _check_one_curve(_resume_with_another_configuration(_killed_beyond_its_checkpoint().id))


def test_replaced_points_that_were_not_yet_sent_are_never_sent(project: Path) -> None:
    run_id = killed_run()  # before its first upload
    logged = max(step for *_, step in Journal(local_folder(run_id, project / "mlruns")).points())
    assert logged > NEW_END
    run = _resume_with_another_configuration(run_id)
    assert stored_history(run.client, run_id, "loss") == _expected_curve(NEW_END)
    assert run.data().data.metrics["loss"] == 100 + (NEW_END - 1) / 2


def test_an_unchanged_resume_replaces_points_only_from_before_an_earlier_change(project: Path) -> None:
    run_id = _killed_beyond_its_checkpoint().id
    with open_run("", run_id=run_id, resume=True, system_metrics=False) as run:
        run.rewind(CHECKPOINT, changed=False)
        before = run.client.get_metric_history(run_id, "loss")
        _log(run, range(CHECKPOINT + 1, OLD_END), 0)
    assert run.client.get_metric_history(run_id, "loss") == before
    _resume_with_another_configuration(run_id)
    with open_run("", run_id=run_id, resume=True, system_metrics=False) as run:
        run.rewind(NEW_END - 10, changed=False)
        assert run.history("loss") == _expected_curve(NEW_END)
        run.rewind(CHECKPOINT - 10, changed=False)  # the newer checkpoints are damaged
        assert run.history("loss") == _expected_curve(CHECKPOINT - 9)


@pytest.mark.parametrize("offset", [0, 100])
def test_a_resume_killed_after_its_rewind_can_be_repeated_with_any_configuration(
    offset: float, project: Path
) -> None:
    run_id = _killed_beyond_its_checkpoint().id
    with pytest.raises(KeyboardInterrupt), open_run("", run_id=run_id, resume=True, system_metrics=False) as run:
        run.rewind(CHECKPOINT)
        _log(run, range(CHECKPOINT + 1, CHECKPOINT + 5), 50)
        raise KeyboardInterrupt
    with open_run("", run_id=run_id, resume=True, system_metrics=False) as run:
        run.rewind(CHECKPOINT)
        _log(run, range(CHECKPOINT + 1, NEW_END), offset)
    expected = [
        (step, value - 100 + offset if step > CHECKPOINT else value) for step, value in _expected_curve(NEW_END)
    ]
    assert stored_history(run.client, run_id, "loss") == run.history("loss") == expected


def test_a_clock_behind_that_of_the_previous_host_does_no_harm(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = _killed_beyond_its_checkpoint().id
    monkeypatch.setattr("time.time_ns", lambda: 10**18)  # the year 2001
    _check_one_curve(_resume_with_another_configuration(run_id))


def test_a_server_keeps_the_old_points_and_readers_ignore_them(server: Server) -> None:
    old = _killed_beyond_its_checkpoint()
    # The new curve is shorter at first: the old curve's last steps have no new points.
    run = _resume_with_another_configuration(old.id, OLD_END - 5)
    client = MlflowClient(server.uri)
    assert len(client.get_metric_history(run.id, "loss")) > OLD_END
    assert [(rewind.step, rewind.time > 0) for rewind in tagged_rewinds(run.data().data.tags)] == [
        (CHECKPOINT, True)
    ]
    curve = [(step, value) for _, value, _, step in stored_points(client, run.id, "loss")]
    assert curve == _expected_curve(OLD_END - 5)
    # Also without the run's folder, which another host would not have.
    (run.folder / "spool.refused").unlink(missing_ok=True)
    clean_folder(run)
    assert not run.folder.exists()
    with open_run("", run_id=run.id) as reopened:
        assert reopened.history("loss") == _expected_curve(OLD_END - 5)
    with open_run("", run_id=run.id, resume=True, system_metrics=False) as more:
        assert more.history("loss") == _expected_curve(OLD_END - 5) and more.history("late") == []
        _log(more, range(OLD_END - 5, NEW_END), 100)
        assert more.history("loss") == _expected_curve(NEW_END)
    curve = [(step, value) for _, value, _, step in stored_points(client, run.id, "loss")]
    assert curve == _expected_curve(NEW_END)
    # The UI shows the last value of the new curve as soon as that is the longer one.
    assert run.data().data.metrics["loss"] == 100 + (NEW_END - 1) / 2


def test_the_tag_does_not_grow_with_rewinds_to_earlier_steps() -> None:
    tags: dict[str, str] = {}
    for time, step in enumerate((500, 900, 800, 800, 700), start=1):
        tags[REWOUND] = add_to_tag(tags, Rewind(step, time))
    assert tagged_rewinds(tags) == [Rewind(500, 1), Rewind(700, 5)]
    assert add_to_tag(tags, Rewind(700, 5)) == tags[REWOUND]


FLAGS = [
    "--config", "zhang/cnn", *MINI, "--model.channels", "[2,2]", "--data.train_per_class", "25", "--data.val_size",
    "100", "--data.train_size", "null", "--data.batch_size", "10", "--trainer.max_epochs", "2",
    "--trainer.log_every_n_steps", "1", "--checkpoint.every_n_steps", "15", "--tracking.system_metrics", "false",
    "--tracking.figures", "false", "--trainer.enable_progress_bar", "false",
    "--threads", "1",  # an earlier test may have changed this number, which affects rounding
]  # fmt: skip
KILLED_FIT = """
import os, signal, sys
from lightning.pytorch import Callback
from lit_mnist.training.fit import fit

class Kill(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == 42:
            os.kill(os.getpid(), signal.SIGKILL)

fit(sys.argv[1:], [Kill()])
"""


class _StopAt(Callback):
    def __init__(self, watch: SignalWatch, step: int) -> None:
        self.watch, self.step = watch, step

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            self.watch.received = signal.SIGTERM


def _curves(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """The last value and all points of each metric that does not depend on time."""
    latest = client.get_run(run_id).data.metrics
    names = [name for name in latest if name != "images_per_s"]
    return {name: (latest[name], stored_history(client, run_id, name)) for name in names}


def test_a_fit_resumed_with_another_learning_rate_shows_it_from_the_checkpoint(project: Path, cli: Cli) -> None:
    changed = ["--model.lr", "0.0007"]
    before = set(run_folders(project / "mlruns"))
    watch = SignalWatch()
    with pytest.raises(Interrupted):  # at the step of the other run's checkpoint
        fit(FLAGS, [_StopAt(watch, 30)], watch)
    (expected,) = (path.name for path in {*run_folders(project / "mlruns")} - before)
    assert cli("fit", "--resume", expected, *changed)[0] == 0

    before = set(run_folders(project / "mlruns"))
    done = subprocess.run([sys.executable, "-c", KILLED_FIT, *FLAGS], check=False)
    assert done.returncode == -signal.SIGKILL
    (run_id,) = (path.name for path in {*run_folders(project / "mlruns")} - before)
    client = connect(find_store())
    assert cli("sync", run_id)[0] == 0
    assert max(stored_history(client, run_id, "train/loss"))[0] >= 41
    assert set(_values(client, run_id, "lr")) == {0.001}
    assert cli("fit", "--resume", run_id, *changed)[0] == 0
    assert _curves(client, run_id) == _curves(client, expected)
    assert _values(client, run_id, "lr") == [0.001] * 30 + [0.0007] * 20
    assert client.get_run(run_id).data.tags["config_diff.model.lr"] == "0.001 → 0.0007 from step 30"


def _values(client: MlflowClient, run_id: str, metric: str) -> list[float]:
    return [value for _, value in stored_history(client, run_id, metric)]
