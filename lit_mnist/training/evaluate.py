"""`lit-mnist validate`, `test` and `predict`: load a checkpoint of a run and apply it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from lit_mnist.data.image_files import read_image
from lit_mnist.errors import UserError
from lit_mnist.models import Classifier
from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import note
from lit_mnist.tracking.folder import CONFIG, upgrade_config
from lit_mnist.tracking.queries.lookup import fetched
from lit_mnist.tracking.run import Run, find_run, open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.checkpoints.files import BEST, CHECKPOINTS, LAST, load_weights
from lit_mnist.training.config_errors import library_errors
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.lightning.ranks import make_rendezvous_interruptible
from lit_mnist.training.lightning.signals import StopEvaluation
from lit_mnist.training.report import Result, show, test_figures, val_figures

if TYPE_CHECKING:
    from mlflow import MlflowClient

ONE_DEVICE = ("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto")
"""Evaluation is short, so it uses one device, however many devices trained the run, unless flags ask for more."""

WITHOUT_EFFECT = ("root", "batch_size", "eval_batch_size")
"""Fields of the data that do not change a result."""


def evaluate(
    verb: str, run_id: str, checkpoint: str, overrides: list[str], watch: SignalWatch | None = None
) -> Result:
    """Measure a run's checkpoint and print the metrics; test metrics are also logged to the run.

    Figures of the predictions are logged as well: for test images always, for validation images only if the
    checkpoint is the best one. With other data or another model than the run's, everything is only printed.

    Args:
        verb: `validate` or `test`.
        run_id: The run's id, or its beginning.
        checkpoint: `best`, `last` or the path of a file.
        overrides: Flags of `fit` that override the run's configuration.
        watch: The signal watch; by default a new one for the duration of the call.

    Raises:
        UserError: there is no such run or checkpoint, or it does not load.
        Interrupted: a signal came.

    """
    noted = SignalWatch() if watch is None else nullcontext(watch)
    with noted as watch, loaded_run(run_id, checkpoint, overrides) as (run, cli, step):
        # Without the logger, which would log a point at step 0: the metrics belong to the checkpoint's step.
        trainer = cli.make_trainer(logger=False, callbacks=[StopEvaluation(watch)], enable_checkpointing=False)
        make_rendezvous_interruptible(trainer, watch)
        # The time of the evaluation alone, without loading and figures.
        start = time.perf_counter()
        with library_errors("--trainer", raised_in=("/lightning/pytorch/",)):
            # A list with one entry per dataloader; there is only one.
            measured = getattr(trainer, verb)(cli.model, datamodule=cli.datamodule, verbose=False)[0]
        took = time.perf_counter() - start
        metrics = {name: value for name, value in measured.items() if "/" in name}
        drawn = []
        # In the run, results with other data or another model would look like its own.
        changes = _changes(run, cli) if overrides else []
        if changes and trainer.is_global_zero:
            note(f"with {changes[0]} this is not the run's own result, and it is not logged to the run")
        if verb == "test" and trainer.is_global_zero and not changes:
            # A repeated test gives the same values, which are logged once.
            known = run.data().data.metrics
            run.log_metrics({name: value for name, value in metrics.items() if known.get(name) != value}, step)
            drawn = test_figures(run, cli.model, cli.datamodule)
        if verb == "validate" and trainer.is_global_zero and checkpoint == "best" and not changes:
            drawn = val_figures(run, cli.model, cli.datamodule)
        result = Result(run.id, metrics, took, drawn)
    if trainer.is_global_zero:
        show(result, verb)
    return result


def _changes(run: Run, cli: LitCLI) -> list[str]:
    """The flags of data and model whose values in `cli` differ from the run's own and may change its results."""
    own, changed = rebuild(run.client, run.id, ONE_DEVICE).config, []
    for group in ("data", "model"):
        before, now = own[group].as_dict(), cli.config[group].as_dict()
        if before["class_path"] != now["class_path"]:
            changed.append(f"--{group} {now['class_path'].rpartition('.')[2]}")
        names = dict.fromkeys([*before["init_args"], *now["init_args"]])
        changed += [
            f"--{group}.{name}"
            for name in names
            if name not in WITHOUT_EFFECT and before["init_args"].get(name) != now["init_args"].get(name)
        ]
    return changed


def draw_best_checkpoint(run_id: str) -> None:
    """Log the figures of a run's best checkpoint on the validation images, unless the run has them.

    Raises:
        UserError: the run has no configuration or no checkpoint, or the images are missing.

    """
    client = connect(find_store())
    # An earlier call or another process may have drawn them.
    if any(Path(item.path).name.startswith("val_") for item in client.list_artifacts(run_id, "figures")):
        return
    with loaded_run(run_id, "best", []) as (run, cli, _):
        cli.datamodule.setup("validate")
        val_figures(run, cli.model, cli.datamodule)


def predict(run_id: str, checkpoint: str, images: list[Path], out: Path) -> None:
    """Print each image's label with its probability, or write its reconstruction into the folder `out`.

    Args:
        run_id: The run's id, or its beginning.
        checkpoint: `best`, `last` or the path of a file.
        images: Files of any size and mode.
        out: Folder for reconstructions, which is created.

    Raises:
        UserError: there is no such run or checkpoint, or an image cannot be read.

    """
    with loaded_run(run_id, checkpoint, []) as (_, cli, _):
        # Only the model is needed: the run is closed before the images are read.
        model, class_names = cli.model.eval(), cli.datamodule.class_names
    # Images of any size are converted to the network's input shape.
    shape = model.hparams.get("image_shape", cli.datamodule.image_shape)
    read = [read_image(path, shape) for path in images]
    # (N, C, H, W), float32 in [0, 1], as the loaders give them
    batch = torch.from_numpy(np.stack([image for image, _ in read])).float().div(255)
    with torch.inference_mode():
        # (N, num_classes) probabilities, or (N, C, H, W) reconstructions
        predictions = model.predict_step(batch, 0)
    for path, (_, notes), prediction in zip(images, read, predictions, strict=True):
        remark = f"  ({', '.join(notes)})" if notes else ""
        if isinstance(model, Classifier):
            label = int(prediction.argmax())
            print(f"{path}: {class_names[label]}  {float(prediction[label]):.1%}{remark}")
            continue
        out.mkdir(parents=True, exist_ok=True)
        target = out / f"{path.stem}_reconstructed.png"
        # Three channels are RGB; any other number is shown as grey, like in the figures.
        pixels = prediction.permute(1, 2, 0) if len(prediction) == 3 else prediction.mean(dim=0)
        Image.fromarray(pixels.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()).save(target)
        print(f"{path}: {target}{remark}")


def rebuild(client: "MlflowClient", run_id: str, overrides: Sequence[str] = ()) -> LitCLI:
    """Model and data of a run, created from its configuration and the flags `overrides`; weights are not loaded.

    Raises:
        UserError: the run has no configuration.

    """
    with ExitStack() as files:
        try:
            # From the store, since the run's folder may have been removed; the artifact is the same file.
            config = upgrade_config(files.enter_context(fetched(client, run_id, CONFIG)))
        except Exception:  # each kind of artifact store raises its own
            raise UserError(f"run {run_id} has no {CONFIG}: `lit-mnist fit` did not make it") from None
        return LitCLI(["--config", str(config), *overrides])


@contextmanager
def loaded_run(run_id: str, checkpoint: str, overrides: list[str]) -> Iterator[tuple[Run, LitCLI, int]]:
    """Open a run, and yield it with its model, whose weights are loaded, its data, and the checkpoint's step."""
    store = find_store()
    # The full id, with which the run is opened.
    found = find_run(connect(store), store, run_id).info.run_id
    with open_run("", run_id=found) as run:
        # Later flags take precedence, so the user's come last.
        cli = rebuild(run.client, run.id, [*ONE_DEVICE, *overrides])
        with _checkpoint_file(run, checkpoint) as path:
            step = load_weights(cli.model, path)["global_step"]
        yield run, cli, step


@contextmanager
def _checkpoint_file(run: Run, name: str) -> Iterator[Path]:
    """The run's `best` or `last` checkpoint, from its folder or its artifacts, or else the file `name`.

    Raises:
        UserError: the run has no checkpoint.

    """
    if name not in ("best", "last"):
        yield Path(name)
        return
    # The run's own folder first: it is local, and may be newer than the store.
    logged = {Path(item.path).name for item in run.client.list_artifacts(run.id, CHECKPOINTS)}
    for file in (BEST, LAST) if name == "best" else (LAST,):
        # Without validation there is no best checkpoint, and the last one is used.
        if file == LAST and name == "best":
            print(f"run {run.id} was never validated: taking its last checkpoint")
        if (path := run.folder / CHECKPOINTS / file).exists():
            yield path
            return
        if file in logged:
            with fetched(run.client, run.id, f"{CHECKPOINTS}/{file}") as path:
                yield path
            return
    raise UserError(f"run {run.id} has no checkpoint, neither in {run.folder} nor among its artifacts")
