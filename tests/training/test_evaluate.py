"""`lit-mnist validate`, `test` and `predict` with the checkpoint of a run."""

import re
from io import BytesIO
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import MINI, SHORT, Cli, enter_project
from PIL import Image

from lit_mnist.cli import main
from lit_mnist.data.mini import load_mini
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store

CNN = ("--config", "zhang/cnn", *MINI, "--model.channels", "[8,16]", "--model.lr", "0.01")
AUTOENCODER = ("--config", "zhang/autoencoder", *SHORT, "--tracking.experiment", "auto")
DIGITS = (0, 1, 6)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    """A project shared by these tests, with image files of digits, as in MNIST and as scans."""
    folder = tmp_path_factory.mktemp("evaluate")
    _, _, images, labels = load_mini()
    for digit in DIGITS:
        image = images[labels == digit][0]
        Image.fromarray(image).save(folder / f"{digit}.png")
        scan = Image.fromarray(255 - np.pad(image, 30)).resize((880, 880), Image.Resampling.BICUBIC)
        scan.convert("RGB").save(folder / f"scan {digit}.png")
    with pytest.MonkeyPatch.context() as patch:
        yield enter_project(folder, patch)


@pytest.fixture(scope="module")
def cnn(project: Path) -> str:
    return _train(CNN)


@pytest.fixture(scope="module")
def autoencoder(project: Path) -> str:
    return _train(AUTOENCODER)


@pytest.fixture(scope="module")
def foreign_runs(project: Path) -> tuple[str, str]:
    """The id of a run that `fit` did not create, and its first character, which is that of another id, too."""
    client, seen = connect(find_store()), {}
    experiment = client.create_experiment("foreign")
    while True:
        run_id = client.create_run(experiment).info.run_id
        if run_id[0] in seen:
            return run_id, run_id[0]
        seen[run_id[0]] = run_id


def _train(arguments: tuple[str, ...]) -> str:
    assert main(["fit", *arguments]) == 0
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=1)
    return run.info.run_id


def _values(out: str) -> dict[str, str]:
    rows = re.findall(r"^(\w+/\w+(?:, \w+/\w+)*) +([0-9.]+) *$", out, re.MULTILINE)
    return {name: value for names, value in rows for name in names.split(", ")}


def _output(cli: Cli, *arguments: str) -> str:
    code, out, err = cli(*arguments)
    assert (code, err) == (0, "")
    return out


def test_test_logs_its_metrics_to_the_same_run(cnn: str, cli: Cli) -> None:
    count = len(mlflow.search_runs(search_all_experiments=True))
    with open_run("", run_id=cnn) as run:
        before = run.data()
        values = _values(_output(cli, "test", "--run", cnn[:12]))
        after = run.data()
        drawn = [item.path for item in run.client.list_artifacts(cnn, "figures")]
        assert len(run.history("test/acc")) == 1
    new = {name: f"{value:.4f}" for name, value in after.data.metrics.items() if name not in before.data.metrics}
    assert new == values and values.keys() == {"test/loss", "test/acc"} and float(values["test/acc"]) > 0.8
    assert "figures/test_confusion_matrix.png" in drawn
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert (
        after.data.params == before.data.params and len(mlflow.search_runs(search_all_experiments=True)) == count
    )


def test_a_test_on_other_data_is_printed_and_not_logged(cnn: str, cli: Cli) -> None:
    cli("test", "--run", cnn)
    with open_run("", run_id=cnn) as run:
        before = run.data().to_dictionary(), run.history("test/acc")
        code, out, err = cli("test", "--run", cnn, "--data.corruption", "gaussian", "--data.noise", "0.9")
        assert code == 0 and f"{before[1][-1][1]:.4f}" not in out and "figures/" not in out
        assert err == (
            "lit-mnist: with --data.corruption this is not the run's own result, and it is not logged to the run\n"
        )
        (Path("noisy.yaml")).write_text("data: {init_args: {corruption: gaussian, noise: 0.9}}\n")
        assert "not logged to the run" in cli("test", "--run", cnn, "--config", "noisy.yaml")[2]
        assert (run.data().to_dictionary(), run.history("test/acc")) == before
        # The size of a batch is no other data.
        assert "figures/" in _output(cli, "test", "--run", cnn, "--data.eval_batch_size", "100")
        assert {value for _, value in run.history("test/acc")} == {before[1][-1][1]}


@pytest.mark.parametrize("kind", ["cnn", "autoencoder"])
def test_validate_prints_the_best_value_of_the_fit_and_logs_nothing(
    kind: str, cli: Cli, request: pytest.FixtureRequest
) -> None:
    run_id = request.getfixturevalue(kind)
    with open_run("", run_id=run_id) as run:
        before = run.data().to_dictionary()
        values = _values(_output(cli, "validate", "--run", run_id))
        assert run.data().to_dictionary() == before
        monitor = run.data().data.tags["monitor"]
        assert values[monitor] == f"{run.data().data.metrics[f'best/{monitor}']:.4f}"


def test_validate_draws_the_mistakes_of_a_run_without_figures(project: Path, cli: Cli) -> None:
    run_id = _train((*CNN, "--tracking.figures", "false", "--trainer.max_epochs", "1"))
    client = connect(find_store())
    assert client.list_artifacts(run_id, "figures") == []
    assert "figures/" not in _output(cli, "validate", "--run", run_id, "--checkpoint", "last")
    out = _output(cli, "validate", "--run", run_id)
    assert out.splitlines()[-1].endswith("figures/val_confusion_matrix.png")
    assert [item.path for item in client.list_artifacts(run_id, "figures")] == ["figures/val_confusion_matrix.png"]


def test_an_autoencoder_logs_its_images_once_per_epoch(project: Path, cli: Cli) -> None:
    series = ("--tracking.experiment", "series", "--checkpoint.every_n_steps", "1000000")
    run_id = _train((*AUTOENCODER, *series, "--trainer.max_epochs", "2"))
    client = connect(find_store())

    def shown() -> list[tuple[int, int]]:
        """Step and size of each image."""
        # Read in place: `download_artifacts` of MLflow 3.1 returns None for a name with a percent sign.
        folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file:"))
        paths = [folder / item.path for item in client.list_artifacts(run_id, "images")]
        return sorted(
            (int(re.split(r"[+%]", path.name)[2]), Image.open(BytesIO(path.read_bytes())).width) for path in paths
        )

    steps = [step for step, _ in shown()]
    # Each image has two files. The page opens at step 0, whose image is that of the untrained network.
    assert len(steps) == 6 and sorted(set(steps))[0] == 0 and len(set(steps)) == 3
    assert {width for _, width in shown()} == {8 * 28 * 2}
    assert cli("fit", "--resume", run_id, "--trainer.max_epochs", "3")[0] == 0
    assert len(shown()) == 8 and client.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"
    with open_run("", run_id=run_id) as run:
        run.log_image(Image.new("L", (16, 16)), "val reconstructions", steps[0])
    assert len(shown()) == 8 and sorted({width for _, width in shown()}) == [16, 8 * 28 * 2]


@pytest.mark.parametrize("digit", DIGITS)
def test_predict_labels_an_image_however_it_was_scanned(digit: int, cnn: str, cli: Cli) -> None:
    plain, scan = _output(cli, "predict", "--run", cnn, f"{digit}.png", f"scan {digit}.png").splitlines()
    assert re.fullmatch(rf"{digit}\.png: {digit}  [0-9.]+%", plain)
    assert re.fullmatch(rf"scan {digit}\.png: {digit}  [0-9.]+%  \(.*inverted: dark on light, .*\)", scan)


def test_predict_writes_an_autoencoders_reconstructions(autoencoder: str, cli: Cli, project: Path) -> None:
    out = _output(cli, "predict", "--run", autoencoder, "--out", "made/here", "0.png", "scan 1.png")
    written = [project / "made" / "here" / f"{name}_reconstructed.png" for name in ("0", "scan 1")]
    assert "0.png: made/here/0_reconstructed.png\n" in out and "scan 1.png: made/here/scan 1_rec" in out
    for path in written:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
            assert image.getextrema()[1] > 0


def test_a_checkpoint_can_be_last_or_a_file(cnn: str, cli: Cli) -> None:
    with open_run("", run_id=cnn) as run:
        file = run.client.download_artifacts(cnn, "checkpoints/last.ckpt")
        last = dict(run.history("val/loss"))[max(step for step, _ in run.history("val/loss"))]
    losses = [_values(_output(cli, "validate", "--run", cnn, "--checkpoint", name)) for name in ("last", file)]
    assert losses[0] == losses[1] and losses[0]["val/loss"] == f"{last:.4f}"


@pytest.mark.parametrize("run_id", ["0123456789", "", "%", "____", "it's"])
@pytest.mark.parametrize("verb", ["test", "predict"])
def test_an_unknown_run_is_a_one_line_error(verb: str, run_id: str, cnn: str, cli: Cli) -> None:
    _fails(cli, verb, "--run", run_id, *(["0.png"] if verb == "predict" else []), says=f"no run {run_id!r}")


def test_an_ambiguous_or_foreign_run_is_a_one_line_error(foreign_runs: tuple[str, str], cli: Cli) -> None:
    run_id, beginning = foreign_runs
    _fails(cli, "test", "--run", beginning, says=f"more than one run begins with '{beginning}'")
    _fails(cli, "test", "--run", run_id, says=f"run {run_id} has no config.yaml")


def test_a_checkpoint_that_does_not_load_is_a_one_line_error(
    cnn: str, autoencoder: str, cli: Cli, project: Path
) -> None:
    with open_run("", run_id=autoencoder) as run:
        other = Path(run.client.download_artifacts(autoencoder, "checkpoints/best.ckpt"))
    (project / "cut.ckpt").write_bytes(other.read_bytes()[:-2000])
    (project / "empty.ckpt").touch()
    for file in ("cut.ckpt", "empty.ckpt", str(other)):
        _fails(
            cli, "test", "--run", cnn, "--checkpoint", file, says=f"the checkpoint {file} does not fit this model"
        )
    _fails(cli, "test", "--run", cnn, "--checkpoint", "bset", says="there is no checkpoint bset")


@pytest.mark.parametrize(("name", "says"), [("gone.png", "gone.png does not exist"), (".", ". is a folder"),
                                            ("pyproject.toml", "pyproject.toml is not an image")])  # fmt: skip
def test_an_image_that_cannot_be_read_is_a_one_line_error(name: str, says: str, cnn: str, cli: Cli) -> None:
    _fails(cli, "predict", "--run", cnn, "0.png", name, says=says)


def _fails(cli: Cli, *arguments: str, says: str) -> None:
    code, out, err = cli(*arguments)
    assert code in (1, 2) and out == ""
    assert err.startswith(f"lit-mnist: error: {says}") and err.count("\n") == 1
