"""Every command works with a colour dataset that has another image shape and another number of classes.

The commands know the dataset only by its `DatasetSpec`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colour import COLOUR, ColourDataModule, colour_images, write_colour
from conftest import Cli
from lightning.pytorch import Trainer
from PIL import Image

from lit_mnist.data import ImageDataModule
from lit_mnist.data.idx import load_arrays
from lit_mnist.models import CNN, DenseAutoencoder, TwoPhaseClassifier
from lit_mnist.tracking.run import open_run
from lit_mnist.training.configuration import LitCLI

DATA = (
    "--data",
    "colour.ColourDataModule",
    "--data.root",
    ".",
    "--data.val_size",
    "35",
    "--data.batch_size",
    "25",
)
SHORT = (*DATA, "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--tracking.system_metrics", "false")
MODELS = {
    "CNN": ("--model.channels", "[4,8]", "--model.lr", "0.01", "--data.rotation", "10"),
    "MLP": ("--model.hidden_sizes", "[16]"),
    "DenseAutoencoder": ("--model.hidden_sizes", "[16]", "--data.corruption", "gaussian", "--data.noise", "0.3"),
    "ConvAutoencoder": ("--model.channels", "[4,4]", "--model.loss", "cross_entropy"),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_colour_dataset_is_fitted_tested_and_predicted(model: str, project: Path, cli: Cli) -> None:
    write_colour(project)
    images, labels = colour_images(train=False)
    photo = Image.fromarray(images[labels == 3][0].transpose(1, 2, 0))
    photo.save(project / "three.png")
    photo.resize((96, 64)).save(project / "large.jpg")

    code, out, err = cli("fit", "--model", model, *SHORT, *MODELS[model])
    assert code == 0, err
    run_id = out.split()[1]
    kind = "reconstructions" if "Autoencoder" in model else "confusion_matrix"
    with open_run("", run_id=run_id) as run:
        params = run.data().data.params
        assert params["image_shape"] == "[3, 32, 32]"
        assert params.get("num_classes") == (None if "Autoencoder" in model else "7")

    (figure,) = (line for line in out.splitlines() if line.endswith(f"val_{kind}.png"))
    drawn = np.asarray(Image.open(figure).convert("RGB"), int)
    assert (np.ptp(drawn, axis=2) > 100).any()  # in colour

    code, out, err = cli("test", "--run", run_id)
    assert code == 0 and ("test/mse" if "Autoencoder" in model else "test/acc") in out, err
    code, out, err = cli("predict", "--run", run_id, "three.png", "large.jpg", "--out", "made")
    assert code == 0, err
    first, second = out.splitlines()
    if "Autoencoder" in model:
        with Image.open(project / "made" / "three_reconstructed.png") as made:
            assert (made.mode, made.size) == ("RGB", (32, 32))
    else:
        assert first.split()[1] in COLOUR.class_names
    assert "resized from 96×64" in second and "resized" not in first


class MemoryDataModule(ImageDataModule):
    """A dataset without IDX files, whose `root` is the brightness of its images."""

    spec = replace(COLOUR, name="Memory", files=None)

    def _read(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(70) % 7
        return torch.full((70, 3, 32, 32), int(self.hparams["root"]), dtype=torch.uint8), labels


def test_a_dataset_without_idx_files_overrides_read() -> None:
    for brightness in ("1", "2", "1"):  # the cache of the last split must tell the roots apart
        data = MemoryDataModule(root=brightness, val_size=14)
        data.setup("fit")
        assert data.train is not None and data.sizes() == {"train": 56, "val": 14}
        assert set(data.train[0].flatten().tolist()) == {int(brightness)}


def test_a_flag_that_contradicts_the_dataset_is_refused(project: Path, cli: Cli) -> None:
    write_colour(project)
    for flag, value in (("--model.num_classes", "5"), ("--model.image_shape", "[1,28,28]")):
        code, _, err = cli("fit", "--model", "CNN", *SHORT, flag, value)
        assert code == 2 and f"{flag} {value.replace(',', ', ')}: " in err and "Colour" in err
    assert not (project / "mlruns").exists()


def test_the_dataset_sets_model_arguments_that_no_flag_or_file_sets(project: Path) -> None:
    (project / "some.yaml").write_text("model:\n  class_path: CNN\n  init_args: {num_classes: 10}\n")
    model = LitCLI(["--config", "some.yaml", *DATA]).model
    assert (model.hparams["num_classes"], model.hparams["image_shape"]) == (10, [3, 32, 32])
    model = LitCLI(["--model", "TwoPhaseClassifier", "--model.encoder", "ConvAutoencoder", *DATA]).model
    assert (model.hparams["num_classes"], model.hparams["image_shape"]) == (7, [3, 32, 32])
    assert LitCLI(["--model", "CNN", "--data", "KMNISTDataModule"]).model.hparams["num_classes"] == 10


@pytest.mark.filterwarnings("ignore:.*random weights", r"ignore:Found \d+ module\(s\) in eval mode")
@pytest.mark.parametrize("model_class", [CNN, DenseAutoencoder, TwoPhaseClassifier])
def test_colour_images_in_a_plain_trainer(model_class: type, tmp_path: Path) -> None:
    write_colour(tmp_path)
    data = ColourDataModule(root=str(tmp_path), val_size=35, corruption="salt_and_pepper", noise=0.1, rotation=20)
    arguments = {"encoder": "ConvAutoencoder"} if model_class is TwoPhaseClassifier else {}
    if model_class is not DenseAutoencoder:
        arguments["num_classes"] = data.spec.num_classes
    model = model_class(image_shape=data.image_shape, **arguments)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert torch.isfinite(trainer.callback_metrics["test/loss"])
    predictions = torch.cat(trainer.predict(model, data))
    assert predictions.shape == ((35, 3, 32, 32) if model_class is DenseAutoencoder else (35, 7))
    images, labels = load_arrays(COLOUR, tmp_path / "Colour" / "raw", train=True)
    assert np.array_equal(images, colour_images(train=True)[0]) and np.bincount(labels).tolist() == [30] * 7
