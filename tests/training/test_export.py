"""`lit-mnist export`: networks that load without this package, and MLflow models that can be served."""

import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import mlflow.pytorch
import numpy as np
import pytest
import torch
import yaml
from conftest import MINI, Cli, enter_project
from servers import free_port, wait_for

from lit_mnist import models
from lit_mnist.cli import main
from lit_mnist.models import Autoencoder, Classifier, LitModel
from lit_mnist.sweeps.workers.runner import sweep
from lit_mnist.tracking.queries.lookup import find_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.export import TOLERANCE, WRITERS, check, trace

onnx_only = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs ONNX: `pip install 'lit-mnist[export]'`",
)
mlflow_pt2 = pytest.mark.skipif(
    "serialization_format" not in inspect.signature(mlflow.pytorch.save_model).parameters,
    reason="needs an MLflow that stores networks as pt2",
)
FORMATS = [pytest.param("pt2"), pytest.param("onnx", marks=onnx_only)]
ARCHITECTURES = [
    cls
    for cls in (getattr(models, name) for name in models.__all__)
    if cls not in (LitModel, Classifier, Autoencoder)
]
READERS = {
    "pt2": "torch.export.load(sys.argv[1]).module()(torch.from_numpy(example['input'])).detach().numpy()",
    "onnx": "onnxruntime.InferenceSession(sys.argv[1]).run(None, {'images': example['input']})[0]",
}
"""Code that runs an exported network, without this package."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        yield enter_project(tmp_path_factory.mktemp("export"), patch)


@pytest.fixture(scope="module")
def cnn(project: Path) -> str:
    assert main(["fit", "--config", "zhang/cnn", *MINI, "--model.channels", "[4,8]", "--model.lr", "0.01"]) == 0
    return find_run(connect(find_store()), find_store(), "last").info.run_id


@pytest.fixture(scope="module")
def study_run(project: Path) -> str:
    spec = {
        "study": "study", "config": "zhang/autoencoder", "trials": 2,
        "metric": "val/loss", "direction": "minimize",
        "flags": {"data": "MiniMNISTDataModule", "data.train_per_class": 40, "data.train_size": None,
                  "trainer.max_epochs": 1},
        "space": {"model.lr": {"choices": [0.0001, 0.01]}},
    }  # fmt: skip
    (project / "study.yaml").write_text(yaml.safe_dump(spec))
    sweep("study.yaml", None, 1, None)
    [found] = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`sweep.role` = 'study'", output_format="list"
    )
    return found.info.run_id


@pytest.mark.parametrize("cls", ARCHITECTURES)
@pytest.mark.parametrize("file_format", FORMATS)
def test_every_architecture_exports(cls: type[LitModel], file_format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)
    exported = trace(cls(), images, {"output": {"name": "output"}})
    path = tmp_path / f"network.{file_format}"
    reread = WRITERS[file_format](exported, path)
    assert check(exported, reread) <= TOLERANCE
    shape = (10,) if issubclass(cls, Classifier) else (1, 28, 28)
    assert reread(np.zeros((7, 1, 28, 28), np.float32)).shape == (7, *shape)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_file_loads_without_this_package(file_format: str, cnn: str, cli: Cli, project: Path) -> None:
    path = project / "out" / f"digits.{file_format}"
    code, out, err = cli("export", cnn[:12], "--format", file_format, "--output", str(path))
    assert (code, err) == (0, "") and f"{path}: " in out
    script = (
        "import sys; sys.modules['lit_mnist'] = None; import numpy as np, torch\n"
        f"{'import onnxruntime' if file_format == 'onnx' else ''}\n"
        "example = np.load(sys.argv[2])\n"
        f"output = {READERS[file_format]}\n"
        "assert np.abs(output - example['output']).max() <= 1e-5 and output.shape == (4, 10)\n"
    )
    example = path.with_name("digits_example.npz")
    subprocess.run(
        [sys.executable, "-c", script, path, example], check=True, cwd=project, env=_environment_without_package()
    )
    described = _description(path)
    assert described["run"] == cnn and described["dataset"]["name"] == "MiniMNIST"
    assert described["metrics"]["val/acc"] > 0.5 and described["output"]["classes"] == list("0123456789")


def test_only_the_best_trial_of_a_study_has_a_figure_of_its_predictions(study_run: str) -> None:
    client = connect(find_store())
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`sweep.trial` != ''", output_format="list"
    )
    [best] = json.loads(Path(client.download_artifacts(study_run, "summary.json")).read_text())["best_trials"]
    drawn = {
        run.info.run_id: [item.path for item in client.list_artifacts(run.info.run_id, "figures")] for run in runs
    }
    assert len(drawn) == 2 and drawn.pop(best["runs"][0]) == ["figures/val_reconstructions.png"]
    assert list(drawn.values()) == [[]]


@mlflow_pt2
def test_the_best_trial_of_a_study_is_served_as_champion(study_run: str, cli: Cli, project: Path) -> None:
    code, out, err = cli("export", study_run, "--format", "mlflow", "--register", "digits", "--output", "copy")
    assert (code, err) == (0, "") and "models:/digits@champion" in out and (project / "copy" / "MLmodel").exists()
    client = connect(find_store())
    version = client.get_model_version_by_alias("digits", "champion")
    summary = client.download_artifacts(study_run, "summary.json")
    [best] = json.loads(Path(summary).read_text())["best_trials"]
    assert version.run_id == best["runs"][0] and client.get_run(version.run_id).info.status == "FINISHED"
    model = mlflow.models.get_model_info("models:/digits@champion")
    stored = client.get_logged_model(model.model_id)
    assert {"val/loss"} <= {metric.key for metric in stored.metrics} and stored.source_run_id == version.run_id
    assert stored.experiment_id == client.get_run(version.run_id).info.experiment_id
    assert stored.tags["dataset.name"] == "MiniMNIST" and model.signature.inputs.input_types()
    port = free_port()
    # The printed command, in a shell without MLFLOW_TRACKING_URI.
    [command] = [line.replace("5001", str(port)) for line in out.splitlines() if "mlflow models serve" in line]
    environment = _environment_without_package() | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    # MLflow starts `uvicorn` by its name, which is found if the environment is activated.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (project / "served.log").open("w") as log:
        server = subprocess.Popen(
            command, shell=True, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_for(lambda: _answers(port), "a served model")
        images = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": images.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = np.array(json.load(response)["predictions"])
        expected = mlflow.pyfunc.load_model("models:/digits@champion").predict(images)
        assert answer.shape == (3, 1, 28, 28) and np.abs(answer - expected).max() < 1e-5
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--register", "digits"], "--register needs --format mlflow"),
        (["--output", "."], "--output . exists: name a file"),
        (["--output", "/proc/x.pt2"], "--output /proc/x.pt2 cannot be written"),
        (["--output", "file/x.pt2"], "--output file/x.pt2 cannot be written"),
        (["--format", "mlflow", "--register", "a/b"], "--register 'a/b': the name of a model has no /"),
        (["--format", "mlflow", "--register", ""], "--register '': the name of a model"),
        (["--checkpoint", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
    ],
)
def test_an_export_that_is_not_possible_is_a_one_line_error(
    arguments: list[str], message: str, cnn: str, cli: Cli
) -> None:
    Path("file").touch()
    code, out, err = cli("export", cnn, *arguments)
    assert code and out == "" and message in err and err.count("\n") == 1


def test_a_missing_package_is_named(cnn: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    code, _, err = cli("export", cnn, "--format", "onnx")
    assert code == 1 and "--format onnx needs onnxscript: `pip install 'lit-mnist[export]'`" in err


def _environment_without_package() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _description(path: Path) -> dict[str, object]:
    if path.suffix == ".pt2":
        extra = {"lit_mnist.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["lit_mnist.json"])
    import onnx

    return json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["lit_mnist.json"])


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
