"""Every model trains in a plain Lightning Trainer, on plain DataLoaders and on the data modules."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.errors import UsageError
from lit_mnist.models import (
    CNN,
    MLP,
    Autoencoder,
    BatchNormAutoencoder,
    BatchNormCNN,
    Classifier,
    ConvAutoencoder,
    DenoisingConvAutoencoder,
    DenseAutoencoder,
    FeatureClassifier,
    LitModel,
    StackedAutoencoder,
    StackedClassifier,
    TwoPhaseClassifier,
)
from lit_mnist.models.common.encoder_classifier import EncoderClassifier

MODELS = [
    (CNN, {"channels": [2, 3]}),
    (BatchNormCNN, {"channels": [2, 3], "hidden_sizes": [8]}),
    (MLP, {"hidden_sizes": [8]}),
    (FeatureClassifier, {"hidden_sizes": [8]}),
    (TwoPhaseClassifier, {"encoder": "ConvAutoencoder", "frozen_epochs": 1}),
    (StackedClassifier, {"hidden_sizes": [8]}),
    (DenseAutoencoder, {"hidden_sizes": [8]}),
    (ConvAutoencoder, {"channels": [4]}),
    (DenoisingConvAutoencoder, {"channels": 2}),
    (BatchNormAutoencoder, {"blocks": [[2], [3]]}),
    (StackedAutoencoder, {"hidden_sizes": [8]}),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|val_dataloader|random weights)"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),  # frozen encoders
]


def _trainer(folder: Path, **arguments: object) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=1, logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, **arguments,
    )  # fmt: skip


def test_this_file_covers_every_architecture() -> None:
    bases = (Autoencoder, Classifier, EncoderClassifier)
    known = {model for base in bases for model in base.__subclasses__() if "lit_mnist" in model.__module__}
    assert {model for model, _ in MODELS} == known - set(bases)


@pytest.mark.parametrize(("model_class", "arguments"), MODELS, ids=[model.__name__ for model, _ in MODELS])
def test_a_model_trains_validates_tests_and_predicts_on_pairs(
    model_class: type[LitModel], arguments: dict[str, object], tmp_path: Path
) -> None:
    shape = (10,) if issubclass(model_class, Classifier) else (1, 28, 28)
    x, y = torch.rand(12, 1, 28, 28), torch.randint(10, (12,))
    pairs = DataLoader(TensorDataset(x, y), batch_size=6)
    model = model_class(**arguments)
    trainer = _trainer(tmp_path)
    trainer.fit(model, pairs, pairs)
    loss = trainer.callback_metrics["val/loss"]
    assert trainer.validate(model, pairs, verbose=False)[0]["val/loss"] == pytest.approx(float(loss))
    assert trainer.test(model, pairs, verbose=False)[0]["test/loss"] == pytest.approx(float(loss))
    of_pairs = torch.cat(trainer.predict(model, pairs))
    assert of_pairs.shape == (12, *shape)
    for images in (DataLoader(x, batch_size=6), DataLoader(TensorDataset(x), batch_size=6)):
        assert torch.equal(torch.cat(trainer.predict(model, images)), of_pairs)
    loaded = model_class.load_from_checkpoint(trainer.checkpoint_callback.best_model_path).eval()
    assert loaded.hparams == model.hparams
    assert torch.equal(torch.cat(trainer.predict(loaded, pairs)), of_pairs)


def test_predict_uses_the_validation_images_of_a_data_module(tmp_path: Path) -> None:
    data = MiniMNISTDataModule(val_size=50)
    predictions = _trainer(tmp_path).predict(MLP(hidden_sizes=[8]), datamodule=data)
    assert torch.cat(predictions).shape == (50, 10) and data.test is None


def test_another_kind_of_batch_is_a_one_line_error(tmp_path: Path) -> None:
    images = DataLoader(torch.rand(6, 1, 28, 28))
    with pytest.raises(UsageError, match=r"a batch must be a pair \(x, y\).*, not a Tensor"):
        _trainer(tmp_path).fit(MLP(), images)


def test_overfit_batches_are_the_same_in_each_epoch(tmp_path: Path) -> None:
    data = MiniMNISTDataModule(train_size=600, val_size=50, eval_batch_size=10, corruption="gaussian", noise=0.1)
    trainer = _trainer(tmp_path, overfit_batches=2)
    trainer.fit_loop.max_epochs = 2
    seen: dict[str, list[torch.Tensor]] = {"train": [], "val": []}

    class Recording(MLP):
        def _step(self, batch, stage):
            seen[stage].append(batch.x)
            return super()._step(batch, stage)

    trainer.fit(Recording(hidden_sizes=[8]), datamodule=data)
    for batches in (seen["train"], seen["val"][-4:]):
        assert len(batches) == 4 and all(torch.equal(batches[i], batches[i + 2]) for i in (0, 1))
    loader = data.train_dataloader()
    loader.set_epoch(5)
    labels = next(iter(loader)).y
    assert len(labels.unique()) > 5  # the file is sorted by class: the fixed epoch is shuffled too
