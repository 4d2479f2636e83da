"""Checkpoints of a run: the best validation value, and the last step."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_mnist.errors import UserError
from lit_mnist.models import LitModel

BEST, LAST = "best.ckpt", "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, flushes, renames: a checkpoint is there whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save `checkpoint` as `path`.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.

        """
        final = Path(path)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            temporary.unlink(missing_ok=True)
            raise UserError(f"cannot write the checkpoint {final}: {error}") from None


def checkpoint_callbacks(model: LitModel) -> list[Callback]:
    """Callbacks that keep `best.ckpt` and `last.ckpt`, in a folder they are yet to be given."""
    best = ModelCheckpoint(
        filename=Path(BEST).stem,
        monitor=model.monitor,
        mode=model.monitor_mode,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    # Without a monitor of its own, `last` is always the last; as a link to the best it could not be.
    last = ModelCheckpoint(
        filename=Path(LAST).stem,
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
        save_on_exception=True,
    )
    return [best, last]


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint:
    """The callback that keeps `best.ckpt`."""
    kept = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    return next(callback for callback in kept if callback.filename == Path(BEST).stem)


def load_weights(model: torch.nn.Module, path: Path) -> dict[str, Any]:
    """Load the weights in `path` into `model`; returns the checkpoint.

    Raises:
        UserError: the file does not load, or holds another model's weights.

    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["state_dict"])
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles on
        what = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} does not fit this model or is damaged: {what}") from None
    return checkpoint
