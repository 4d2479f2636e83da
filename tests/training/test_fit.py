"""`lit-mnist fit`: MLflow has everything about a run, once; the same seed gives the same run."""

import json
import re
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from conftest import SHORT, Cli, enter_project
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from PIL import Image

import lit_mnist
from lit_mnist.cli import main
from lit_mnist.terminal import quiet
from lit_mnist.tracking.run import Run, open_run
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.fit import fit

EVERY_STEP = (*SHORT, "--trainer.log_every_n_steps", "1", "--seed_everything", "7")
CNN = ["--config", "zhang/cnn", *EVERY_STEP, "--model.channels", "[4,8]", "--model.lr", "0.01",
       "--trainer.max_epochs", "3"]  # fmt: skip
AUTOENCODER = ["--config", "zhang/autoencoder", *EVERY_STEP, "--model.hidden_sizes", str([64] * 100),
               "--data.corruption", "gaussian", "--data.noise", "0.3", "--data.batch_size", "100"]  # fmt: skip
KINDS = {
    "cnn": (CNN, 24, {"val/acc", "best/val/acc", "train/acc"}, "val_confusion_matrix.png"),
    "autoencoder": (AUTOENCODER, 4, {"val/mse", "best/val/loss"}, "val_reconstructions.png"),
}
"""By kind of model: arguments, number of steps, further metrics, and the figure besides the loss curves."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    """A project shared by these tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_project(tmp_path_factory.mktemp("fit"), patch)
        yield folder


@pytest.fixture(scope="module", params=KINDS)
def trained(project: Path, request: pytest.FixtureRequest):
    """A run of each kind of model, followed by the entries of KINDS."""
    arguments, *expected = KINDS[request.param]
    assert main(["fit", *arguments]) == 0
    newest = mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=1)[0]
    with open_run("", run_id=newest.info.run_id) as run:
        yield run, arguments, *expected


def _artifacts(run: Run, folder: str | None = None) -> list[str]:
    return [item.path for item in run.client.list_artifacts(run.id, folder)]


def _weights(run: Run, name: str) -> dict[str, object]:
    return torch.load(run.client.download_artifacts(run.id, f"checkpoints/{name}.ckpt"), weights_only=True)


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_hyperparameter_is_logged_in_full(trained) -> None:
    run, arguments, *_ = trained
    params = LitCLI(arguments).params()
    texts = {name: json.dumps(v) if isinstance(v, list) else str(v) for name, v in params.items() if v is not None}
    assert run.data().data.params == texts | {name: "null" for name, value in params.items() if value is None}
    assert params["seed_everything"] == 7
    assert "hidden_sizes" not in params or len(texts["hidden_sizes"]) > 250


def test_code_packages_device_and_data_are_logged(trained) -> None:
    run, arguments, *_ = trained
    tags, data = run.data().data.tags, LitCLI(arguments).datamodule
    git = ["git", "-C", str(Path(lit_mnist.__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    assert tags["mlflow.source.git.commit"] == commit or not commit
    assert tags["git.dirty"] in ("true", "false") or not commit
    for package in ("torch", "lightning", "mlflow"):
        assert tags[f"version.{package}"] == version(package)
    packages = Path(run.client.download_artifacts(run.id, "packages.txt")).read_text().splitlines()
    assert f"torch=={version('torch')}" in packages
    assert tags["device"].partition(" ")[0] in ("cpu", "cuda", "mps")
    data.setup("fit")
    [dataset] = [entry.dataset for entry in run.data().inputs.dataset_inputs]
    assert (dataset.name, dataset.digest) == ("MiniMNIST", data.digest())
    assert (tags["dataset.name"], tags["dataset.digest"]) == ("MiniMNIST", data.digest())
    assert json.loads(dataset.profile) == {"train": 400, "val": 400}


def test_every_metric_is_logged_and_every_point_once(trained) -> None:
    run, _, steps, further, _ = trained
    points = {name: [step for step, _ in run.history(name)] for name in run.data().data.metrics}
    assert {"train/loss", "train/loss_epoch", "val/loss", "lr", "epoch", "images_per_s"} | further <= set(points)
    assert not {name for name in points if name.startswith("system/")}  # only of runs of a minute or more
    assert {name: at for name, at in points.items() if len(at) != len(set(at))} == {}
    assert points["train/loss"] == points["lr"] == list(range(1, steps + 1))


def test_the_best_and_the_last_checkpoint_are_logged_once(trained, project: Path) -> None:
    run, arguments, steps, *_ = trained
    assert _artifacts(run, "checkpoints") == ["checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    assert sorted(path.name for path in project.rglob(f"*{run.id}*/**/*.ckpt")) == ["best.ckpt", "last.ckpt"]
    best, last = _weights(run, "best"), _weights(run, "last")
    monitor = run.data().data.tags["monitor"]
    history = run.history(monitor)
    value = (max if monitor == "val/acc" else min)(value for _, value in history)
    assert run.history(f"best/{monitor}") == [(best["global_step"], value)]
    assert dict(history)[best["global_step"]] == value and last["global_step"] == steps
    cli = LitCLI(arguments)
    cli.model.load_state_dict(best["state_dict"])
    trainer = cli.make_trainer(logger=False, enable_checkpointing=False)
    assert trainer.validate(cli.model, cli.datamodule, verbose=False)[0][monitor] == pytest.approx(value, rel=1e-6)


def test_the_figures_are_logged(trained) -> None:
    run, *_, second = trained
    assert _artifacts(run, "figures") == ["figures/loss_curves.png", f"figures/{second}"]
    for path in _artifacts(run, "figures"):
        with Image.open(run.client.download_artifacts(run.id, path)) as image:
            assert image.format == "PNG" and 400 < image.width < 4000 and 200 < image.height < 4000
            assert len(image.convert("L").histogram()) - image.convert("L").histogram().count(0) > 20


def test_the_run_is_finished_and_its_local_checkpoints_are_removed(trained) -> None:
    run, *_ = trained
    assert run.data().info.status == "FINISHED" and run.data().info.end_time
    assert not (run.folder / "checkpoints").exists()


def test_the_logged_config_gives_the_same_weights_and_another_seed_does_not(project: Path) -> None:
    first = fit(CNN)
    with open_run("", run_id=first.run_id) as run:
        config = run.client.download_artifacts(run.id, "config.yaml")
        original = _weights(run, "last")["state_dict"]
    for flags, same in (([], True), (["--seed_everything", "8"], False)):
        with open_run("", run_id=fit(["--config", config, *flags]).run_id) as run:
            assert _equal(_weights(run, "last")["state_dict"], original) == same


def test_a_fit_shorter_than_a_logging_interval_logs_its_curves(cli: Cli) -> None:
    code, out, err = cli("fit", "--config", "zhang/cnn", *SHORT)
    assert code == 0, err
    with open_run("", run_id=out.split()[1]) as run:
        for name in ("train/loss", "train/acc", "lr", "images_per_s"):
            assert [step for step, _ in run.history(name)] == [8], name


BARE = ["--tracking.system_metrics", "false", "--tracking.figures", "false"]


def test_logging_intervals_do_not_depend_on_the_length_of_an_epoch(project: Path) -> None:
    losses = []
    for every in ("1", "5"):
        result = fit([*CNN, *BARE, "--data.batch_size", "50", "--trainer.log_every_n_steps", every])
        assert result is not None
        with open_run("", run_id=result.run_id) as run:
            losses.append(dict(run.history("train/loss")))
    each, windows = losses
    assert list(each) == list(range(1, 25)) and list(windows) == [5, 10, 15, 20]  # an epoch has 8 steps
    for step, loss in windows.items():
        assert loss == pytest.approx(sum(each[s] for s in range(step - 4, step + 1)) / 5)


def test_callbacks_can_monitor_the_training_loss(project: Path) -> None:
    stop = EarlyStopping("train/loss", patience=1, min_delta=1e3)
    keep = ModelCheckpoint(monitor="train/loss", filename="lowest", auto_insert_metric_name=False)
    result = fit([*CNN, *BARE], [stop, keep])
    assert result is not None
    with open_run("", run_id=result.run_id) as run:
        losses = dict(run.history("train/loss"))
        assert max(losses) == 16 and stop.wait_count == 1  # an epoch has 8 steps
        assert float(stop.best_score) == losses[8] and float(keep.best_model_score) == min(losses[8], losses[16])
        assert "checkpoints/lowest.ckpt" in _artifacts(run, "checkpoints")


class Writer(Callback):
    """Writes to the Trainer's folder, as callbacks of other projects do."""

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        folder = Path(str(trainer.log_dir)) / "inner"
        folder.mkdir()
        (folder / "note.txt").write_text("written by a callback")
        (Path(str(trainer.log_dir)) / "top.txt").touch()


@pytest.mark.filterwarnings("ignore")  # torch's and Lightning's remarks on profiling
@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_a_profile_and_what_callbacks_write_are_artifacts(
    profiler: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = fit([*CNN, *BARE, "--trainer.max_epochs", "1", "--trainer.profiler", profiler], [Writer()])
    assert result is not None
    printed = capsys.readouterr().out
    assert "FIT Profiler Report" in printed
    with open_run("", run_id=result.run_id) as run:
        files = _artifacts(run, "files")
        assert {"files/fit-profile.txt", "files/inner", "files/top.txt"} <= set(files)
        assert any(name.endswith(".pt.trace.json") for name in files) == (profiler == "pytorch")
        assert _artifacts(run, "files/inner") == ["files/inner/note.txt"]
        report = Path(run.client.download_artifacts(run.id, "files/fit-profile.txt")).read_text()
        assert report in printed


class Clock(Callback):
    """A clock by which a training batch takes 1 s and a validation batch 1000 s."""

    now = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self.now += 1

    def on_validation_batch_start(self, *args: Any) -> None:
        self.now += 1000


class FailsAtStep12(Callback):
    """Fails after step 12."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 12:
            raise RuntimeError("it fails")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty")  # a resumed run's
def test_a_resumed_fit_removes_the_last_checkpoint_that_it_does_not_keep(project: Path) -> None:
    flags = ("--tracking.keep_checkpoints", "best", "--checkpoint.every_n_steps", "4")
    with pytest.raises(RuntimeError, match="it fails"):
        fit([*CNN, *BARE, *flags, "--tracking.name", "leftover"], [FailsAtStep12()])
    (failed,) = mlflow.search_runs(
        search_all_experiments=True, output_format="list", filter_string="attributes.run_name = 'leftover'"
    )
    with open_run("", run_id=failed.info.run_id) as run:
        assert "checkpoints/last.ckpt" in _artifacts(run, "checkpoints")
    assert fit(["--resume", failed.info.run_id]) is not None
    assert _artifacts(run, "checkpoints") == ["checkpoints/best.ckpt"]


@pytest.mark.parametrize(("every", "windows"), [("4", 6), ("5", 4)])
def test_validation_in_mid_epoch_does_not_count_as_training_time(
    every: str, windows: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("lit_mnist.models.common.metrics.time", SimpleNamespace(perf_counter=lambda: clock.now))
    flags = ["--trainer.log_every_n_steps", every, "--trainer.val_check_interval", "0.25"]
    result = fit([*CNN, *BARE, *flags, "--data.batch_size", "50"], [clock])
    assert result is not None
    with open_run("", run_id=result.run_id) as run:
        assert [speed for _, speed in run.history("images_per_s")] == [50.0] * windows
        assert len(run.history("val/loss")) == 12


@pytest.mark.parametrize(
    "strategy", ["fsdp", "deepspeed_stage_2", "lightning.pytorch.strategies.FSDPStrategy", "model_parallel"]
)
def test_sharded_strategies_are_refused_by_name(strategy: str, cli: Cli, project: Path) -> None:
    before = set(project.glob("mlruns/runs/*"))
    code, _, err = cli("fit", "--config", "zhang/cnn", *SHORT, "--trainer.strategy", strategy)
    assert code == 2 and err.count("\n") == 1 and "take ddp" in err and "sharded" in err
    assert set(project.glob("mlruns/runs/*")) == before


def test_mixed_float16_on_a_cpu_is_refused(cli: Cli) -> None:
    flags = ("--trainer.accelerator", "cpu", "--trainer.precision", "16-mixed")
    code, out, err = cli("fit", "--config", "zhang/cnn", *SHORT, *flags)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "--trainer.precision 16-mixed: a CPU has no float16 mixed precision; take bf16-mixed" in err


def test_warnings_about_nondeterministic_operations_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        quiet()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            torch.nn.functional.max_unpool2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.long), 2)
        finally:
            torch.use_deterministic_algorithms(False)
    assert "does not have a deterministic implementation" in capsys.readouterr().err


def test_without_validation_images_all_images_are_for_training(project: Path, cli: Cli) -> None:
    flags = [*SHORT, "--data.train_per_class", "null", "--data.val_size", "0", "--data.batch_size", "200"]
    command = ["fit", "--config", "zhang/cnn", *flags, "--model.channels", "[2,2]", "--trainer.max_epochs"]
    code, out, err = cli(*command, "1")
    assert code == 0 and "train/acc" in out and "val/" not in out, err
    run_id = out.split()[1]
    code, out, err = cli("fit", "--resume", run_id, "--trainer.max_epochs", "2")
    assert code == 0 and "goes on from step 20" in out, err
    with open_run("", run_id=run_id) as run:
        assert not [name for name in run.data().data.metrics if name.startswith(("val/", "best/"))]
        assert _artifacts(run, "checkpoints") == ["checkpoints/last.ckpt"]
        assert _artifacts(run, "figures") == ["figures/loss_curves.png"]
        assert _weights(run, "last")["global_step"] == 40  # 4,000 images in batches of 200, two epochs
    code, out, _ = cli("test", "--run", run_id)
    assert code == 0 and "taking its last checkpoint" in out and "test/acc" in out
    assert cli("validate", "--run", run_id)[::2] == (
        2,
        "lit-mnist: error: --data.val_size 0 leaves no validation images\n",
    )
    code, _, err = cli("fit", "--config", "panagakis/classifier", *flags, "--model.patience", "3")
    assert code == 2 and "--model.patience 3 has no effect with --data.val_size 0" in err


def test_a_line_of_progress_has_the_step_and_each_value_once(cli: Cli, project: Path) -> None:
    code, out, err = cli("fit", *AUTOENCODER, "--model.hidden_sizes", "[16]", "--trainer.max_steps", "4")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert "step 4 of 4" in line and "val/loss" in line
    assert "val/mse" not in line  # here it equals the loss


def test_progress_on_a_terminal_stays_on_its_line(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("lit_mnist.training.progress.REDRAW_INTERVAL", 0.0)
    length = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "12")
    code, out, err = cli("fit", *CNN, *length)
    assert code == 0, err
    drawn = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", out)]
    lines = [line for line in drawn if line.startswith("epoch ")]
    assert any(re.match(r"epoch \d+  step 5 of 12  about .* left  train/acc", line) for line in lines)
    assert any(re.match(r"epoch 2  step 12 of 12  val/acc \d.\d{4}  val/loss ", line) for line in lines)
    assert all(len(line) <= 100 for line in lines)
    assert not Path(drawn[-2]).is_absolute() and Path(drawn[-2]).exists()
