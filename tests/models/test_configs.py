"""Every packaged configuration trains, and each stage loads the checkpoint of the stage before it."""

from pathlib import Path

import pytest
import torch

from lit_mnist.training.config_files import config_names
from lit_mnist.training.configuration import LitCLI

STAGES = {
    "zhang/feature_classifier": ("--model.encoder_checkpoint", "zhang/autoencoder"),
    "dutta/code_classifier": ("--model.encoder_checkpoint", "dutta/autoencoder"),
    "panagakis/classifier": ("--model.encoder_checkpoint", "panagakis/autoencoder"),
    "yaramsetty/layer_2": ("--model.below_checkpoint", "yaramsetty/layer_1"),
    "yaramsetty/layer_3": ("--model.below_checkpoint", "yaramsetty/layer_2"),
    "yaramsetty/finetune": ("--model.encoder_checkpoint", "yaramsetty/layer_3"),
}
"""Configuration to the flag for a checkpoint, and the configuration that trains it."""
SHORT = (
    *("--data", "MiniMNISTDataModule", "--data.val_size", "20", "--data.eval_batch_size", "20"),
    *("--data.batch_size", "10", "--data.train_size", "null", "--data.train_per_class", "2"),
    *("--trainer.max_steps", "2", "--trainer.max_epochs", "-1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.accelerator", "cpu", "--trainer.check_val_every_n_epoch", "1"),
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by configuration, filled by `_fit`; the entry "" is their folder."""
    return {"": tmp_path_factory.mktemp("configs")}


def _fit(name: str, checkpoints: dict[str, Path]) -> Path:
    """The checkpoint of a configuration, which is trained for two steps, after the stages before it, if needed."""
    if name not in checkpoints:
        flag, before = STAGES.get(name, ("", ""))
        stage = [flag, str(_fit(before, checkpoints))] if before else []
        cli = LitCLI(["--config", name, *SHORT, *stage])
        trainer = cli.make_trainer(logger=False, enable_checkpointing=False)
        trainer.fit(cli.model, datamodule=cli.datamodule)
        assert trainer.global_step == 2 and torch.isfinite(trainer.callback_metrics["val/loss"])
        checkpoints[name] = checkpoints[""] / f"{name.replace('/', '-')}.ckpt"
        trainer.save_checkpoint(checkpoints[name])
    return checkpoints[name]


@pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")  # the frozen encoders
@pytest.mark.parametrize("name", config_names())
def test_a_packaged_config_trains_and_its_checkpoint_has_plain_types(
    name: str, checkpoints: dict[str, Path]
) -> None:
    model = type(LitCLI(["--config", name]).model)
    path = _fit(name, checkpoints)
    again = model.load_from_checkpoint(path, map_location="cpu")
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[key]) for key, value in again.state_dict().items())
