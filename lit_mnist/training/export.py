"""`lit-mnist export`: a run's network as a file that loads without this package, or as an MLflow model."""

import contextlib
import importlib.util
import inspect
import io
import json
import logging
import os
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import lit_mnist
from lit_mnist.errors import DataError, UsageError, UserError, one_line
from lit_mnist.models import Classifier, LitModel
from lit_mnist.terminal import note
from lit_mnist.tracking.journal.points import stored_points
from lit_mnist.tracking.provenance import package_versions
from lit_mnist.tracking.queries.lookup import fetched, find_run
from lit_mnist.tracking.queries.reader import STUDY_RUN
from lit_mnist.tracking.run import Run
from lit_mnist.tracking.store import URI, connect, find_store
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.evaluate import loaded_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

Format = Literal["pt2", "onnx", "mlflow"]
Images = NDArray[np.float32]
TOLERANCE = 1e-5
"""Largest difference between an output of the exported network and the checkpoint's."""
EXAMPLES = 4
"""Number of example images; with one image, torch.export would fix the batch size to 1 (torch 2.8 to 2.15)."""
DESCRIPTION = "lit_mnist.json"
"""Name of the description inside a pt2 file, and its key in the metadata of an ONNX file."""
CHAMPION = "champion"
"""Alias of a registered model version that was exported from the best trial of a study."""


class Predictor(nn.Module):
    """Computes the output of `lit-mnist predict` for images (B, C, H, W) in [0, 1].

    A classifier returns probabilities (B, num_classes), an autoencoder reconstructions (B, C, H, W).
    """

    def __init__(self, model: LitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities or reconstructions of `images`."""
        output: Tensor = self.model.predict_step(images, 0)
        return output


@dataclass(frozen=True)
class Exported:
    """A traced network of a run, with an example and a description."""

    predictor: Predictor
    program: ExportedProgram
    example: Images
    """Images (EXAMPLES, C, H, W)."""
    description: dict[str, Any]

    def expected(self, images: Images) -> Images:
        """The checkpoint's own output for `images`."""
        with torch.inference_mode():
            return self.predictor(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]


def export(
    run_id: str, file_format: Format, checkpoint: str, output: Path | None = None, register: str | None = None
) -> None:
    """Export a checkpoint of a run, and print where it is.

    Args:
        run_id: The run's id, its beginning, or `last`. For the run of a study, its best trial is exported.
        file_format: `pt2` for `torch.export.load`, `onnx`, or `mlflow` for a model that is logged to the run.
        checkpoint: `best`, `last` or the path of a file.
        output: File, or for `mlflow` the folder for a copy of the model; by default a file named after the run.
        register: Name in MLflow's model registry. A study's best trial gets the alias `champion`.

    Raises:
        UserError: there is no such run or checkpoint, a package is missing, `output` exists as a folder or cannot
            be written, `register` is no name for a model, or the exported network does not compute what the
            checkpoint computes.

    """
    # First all checks that need no loading.
    if register is not None and file_format != "mlflow":
        raise UsageError(f"--register needs --format mlflow: a {file_format} file is no MLflow model")
    if register is not None and (not register.strip() or set("/:") & set(register)):
        raise UsageError(f"--register {register!r}: the name of a model has no / and no :, and is not empty")
    if output is not None:
        _check_output(output, file_format)
    _check_packages(file_format)
    store = find_store()
    client = connect(store)
    # A study's run has no checkpoints: those are in its trials' runs.
    run_id, is_best = _trial_run(client, find_run(client, store, run_id).info.run_id)
    with loaded_run(run_id, checkpoint, []) as (run, cli, step):
        exported = trace(cli.model, example_images(cli), describe(run, cli, step))
        if file_format == "mlflow":
            _log_to_mlflow(exported, run, output, register, is_best)
            return
        path = output or Path(f"{type(cli.model).__name__.lower()}-{run.id[:8]}.{file_format}")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under a temporary name and renamed after the check, so that `path` is always complete and
        # correct.
        temporary = path.with_name(f".{path.stem}.partial.{file_format}")
        try:
            difference = check(exported, WRITERS[file_format](exported, temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    example = path.with_name(f"{path.stem}_example.npz")
    # Lets a user check that the network computes the same results on another machine.
    np.savez(example, input=exported.example, output=exported.expected(exported.example))
    print(f"{path}: {path.stat().st_size:,} bytes, {_show(difference)}")
    print(f"{example}: {EXAMPLES} images and the network's output for them")


def _show(difference: float) -> str:
    """Say how far outputs are from those of the checkpoint."""
    return (
        "outputs equal the checkpoint's"
        if difference == 0
        else f"outputs within {difference:.0e} of the checkpoint's"
    )


def trace(model: LitModel, example: Images, description: dict[str, Any]) -> Exported:
    """Trace the network of `model` with the images `example`, for batches of any size."""
    # In evaluation mode, so that the traced network has no dropout, and batch norm uses its running statistics.
    predictor, images = Predictor(model.eval()), torch.from_numpy(example)
    # A symbolic batch size, so that it is not fixed to that of the example.
    program = torch.export.export(predictor, (images,), dynamic_shapes=({0: Dim("batch")},))
    return Exported(predictor, program, example, description)


def example_images(cli: LitCLI) -> Images:
    """The first validation images, of shape (EXAMPLES, C, H, W); random ones where the dataset is missing."""
    data = cli.datamodule
    try:
        # Validation images, since an example must not reveal test images.
        data.setup("validate")
        return next(iter(data.val_dataloader())).x[:EXAMPLES].cpu().numpy()
    except DataError as error:  # the network does not depend on the images
        note(f"the example is random noise: {error}")
        shape = cli.model.hparams.get("image_shape", data.image_shape)
        return np.random.default_rng(0).random((EXAMPLES, *shape), dtype=np.float32)


def describe(run: Run, cli: LitCLI, step: int) -> dict[str, Any]:
    """Signature, metrics and origin of the network, as plain types.

    Args:
        run: The run; its metrics and dataset are read.
        cli: Its model and its data.
        step: The step of the checkpoint.

    """
    tags, versions, classes = run.data().data.tags, package_versions(), list(cli.datamodule.class_names)
    shape = ["batch", *cli.model.hparams.get("image_shape", cli.datamodule.image_shape)]
    output: dict[str, Any] = {"name": "reconstruction", "shape": shape}
    if isinstance(cli.model, Classifier):
        scores = ["batch", cli.model.hparams["num_classes"]]
        output = {"name": "probabilities", "shape": scores, "classes": classes}
    return {
        "run": run.id,
        "experiment": run.experiment,
        "model": type(cli.model).__name__,
        "step": step,
        "input": {"name": "images", "shape": shape, "dtype": "float32", "range": [0, 1]},
        "output": {**output, "dtype": "float32"},
        "metrics": _metrics(run, step),
        "dataset": {"name": tags.get("dataset.name"), "digest": tags.get("dataset.digest")},
        "versions": {"lit-mnist": lit_mnist.__version__, "torch": versions["torch"]},
    }


def check(exported: Exported, reread: Callable[[Images], Images]) -> float:
    """Return the largest difference between the outputs of the written file and of the checkpoint.

    Args:
        exported: The network.
        reread: Calls the network that was read from the file.

    Raises:
        UserError: the difference is larger than TOLERANCE.

    """
    # Batches of other sizes than in the trace show that the batch size is not fixed.
    batches = (exported.example, exported.example[:1], np.concatenate([exported.example] * 2)[1:])
    difference = max(float(np.abs(reread(batch) - exported.expected(batch)).max()) for batch in batches)
    if not difference <= TOLERANCE:  # also for NaN
        raise UserError(
            f"the exported network differs from the checkpoint by {difference:.1e}, more than {TOLERANCE:.0e}"
        )
    return difference


def write_pt2(exported: Exported, path: Path) -> Callable[[Images], Images]:
    """Write `path` with torch.export; returns a function that calls the network read from that file."""
    torch.export.save(exported.program, path, extra_files={DESCRIPTION: json.dumps(exported.description)})
    # Read back, so that `check` tests the file.
    module = torch.export.load(path).module()

    def call(images: Images) -> Images:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return call


def write_onnx(exported: Exported, path: Path) -> Callable[[Images], Images]:
    """Write `path` as ONNX; returns a function that calls the network in that file with onnxruntime."""
    import onnxruntime

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's own deprecations (torch 2.8 to 2.15)
        # With dynamo it traces with torch.export, as `trace` does, and supports a symbolic batch size.
        made = torch.onnx.export(
            exported.predictor,
            (torch.from_numpy(exported.example),),
            dynamo=True,
            dynamic_shapes=({0: Dim("batch")},),
            input_names=["images"],
            output_names=[exported.description["output"]["name"]],
        )
    assert made is not None, "with dynamo=True it returns a program"
    made.model.metadata_props[DESCRIPTION] = json.dumps(exported.description)
    made.save(path, external_data=False)
    # On the CPU, like the checkpoint that it is compared with.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def call(images: Images) -> Images:
        return session.run(None, {"images": images})[0]  # type: ignore[no-any-return]

    return call


WRITERS: dict[str, Callable[[Exported, Path], Callable[[Images], Images]]] = {"pt2": write_pt2, "onnx": write_onnx}


def _log_to_mlflow(exported: Exported, run: Run, output: Path | None, register: str | None, is_best: bool) -> None:
    """Log the network to its run as an MLflow model; register it, and copy it to `output`, if wanted."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, infer_signature

    described, versions = exported.description, package_versions()
    # `mlflow.pytorch.log_model` would use the default experiment, and needs an active run, whose status changes
    # when it ends (3.17). `create_logged_model` and `Model.log` do the same for a run that is not active.
    stored = run.data()
    made = run.client.create_logged_model(
        stored.info.experiment_id,
        described["model"],
        source_run_id=run.id,
        params=stored.data.params,
        tags={f"dataset.{key}": str(value) for key, value in described["dataset"].items()},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        info = Model.log(
            artifact_path=None,
            flavor=mlflow.pytorch,
            model_id=made.model_id,
            run_id=run.id,
            step=described["step"],  # MLflow links the model to the run's metrics of this step
            pytorch_model=exported.predictor,
            serialization_format="pt2",
            signature=infer_signature(exported.example, exported.expected(exported.example)),
            input_example=exported.example,
            metadata=described,
            # Otherwise MLflow loads the model in another process to find its imports, which takes 12 s (3.17).
            pip_requirements=[f"{name}=={versions[name]}" for name in ("torch", "numpy", "mlflow")],
        )
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    print(f"{info.model_uri}: {_show(check(exported, loaded.predict))}")
    if register is not None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # MLflow prints a message there
                # A new version of the name each time; versions are never replaced.
                version = mlflow.register_model(info.model_uri, register).version
        except MlflowException as error:
            raise UserError(f"--register {register}: {one_line(error)}") from None
        if is_best:
            run.client.set_registered_model_alias(register, CHAMPION, version)
        name = f"models:/{register}@{CHAMPION}" if is_best else f"models:/{register}/{version}"
        # A shell without the variable would look for the model in a store of its own, a new `mlflow.db`.
        where = "" if os.environ.get(URI) else f"{URI}={shlex.quote(run.store.uri)} "
        print(f"{name}: version {version}; to serve it:")
        print(f"  {where}mlflow models serve --env-manager local --host 127.0.0.1 --port 5001 --model-uri {name}")
    if output is not None:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=folder), output)
        print(output)


def _trial_run(client: "MlflowClient", run_id: str) -> tuple[str, bool]:
    """Return the run to export, and True if it belongs to the best trial of its study.

    Raises:
        UserError: `run_id` is the run of a study without a complete trial, or its best trial's run is deleted.

    """
    study_run = client.get_run(run_id).data.tags.get(STUDY_RUN)
    if study_run is None:
        return run_id, False
    try:
        with fetched(client, study_run, "summary.json") as file:
            # Written by `sweep` when it ends.
            best: list[dict[str, Any]] = json.loads(file.read_text())["best_trials"]
    except Exception:  # the study has no summary; each kind of artifact store raises its own
        best = []
    runs = [run for trial in best for run in trial["runs"]]
    if run_id != study_run:
        return run_id, run_id in runs
    if not runs:
        raise UserError(f"run {run_id} is that of a study without a complete trial: there is nothing to export")
    if client.get_run(runs[0]).info.lifecycle_stage == "deleted":
        raise UserError(
            f"run {runs[0]} of the study's best trial is deleted: restore it (`mlflow runs restore --run-id"
            f" {runs[0]}`), or export the run of another trial"
        )
    return str(runs[0]), True


def _metrics(run: Run, step: int) -> dict[str, float]:
    """The last value of each validation and test metric up to `step`."""
    found = {}
    for name in run.data().data.metrics:
        if name.startswith(("val/", "test/")):
            # For a checkpoint from the middle of the run, later metrics do not count.
            points = [point for point in stored_points(run.client, run.id, name) if point[3] <= step]
            if points:
                found[name] = points[-1][1]
    return found


def _check_output(output: Path, file_format: Format) -> None:
    """Check that `output` is new, or a file that a file may replace, in a place that can be written.

    Raises:
        UsageError: it is not.

    """
    if output.is_dir() or (file_format == "mlflow" and output.exists()):
        wanted = "a new folder" if file_format == "mlflow" else "a file"
        raise UsageError(f"--output {output} exists: name {wanted}")
    try:
        # torch reports a file that cannot be written as a RuntimeError. The folder is created later.
        existing = next(folder for folder in output.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror}") from None


def _check_packages(file_format: Format) -> None:
    """Check that the packages that `file_format` needs are installed.

    Raises:
        UserError: one is missing, or too old.

    """
    if file_format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(name) is None:
                raise UserError(f"--format onnx needs {name}: `pip install 'lit-mnist[export]'`")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if file_format == "mlflow":
        import mlflow.pytorch

        if "serialization_format" not in inspect.signature(mlflow.pytorch.save_model).parameters:
            raise UserError(
                f"--format mlflow needs MLflow 3.11 or newer: models of {mlflow.__version__} are pickles"
                " that need this package: `pip install -U mlflow`, or take --format pt2"
            )
