"""Checkpoint files: atomic writing, rotation, and reading with verified checksums."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_mnist.errors import UserError
from lit_mnist.models import LitModel

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in the run's own folder and among its artifacts."""
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
NEXT = f"next-{LAST}"
"""A complete checkpoint that will be renamed to `last.ckpt`."""
STATE = "lit_mnist"
"""The checkpoint's entry for state that Lightning does not save; without it a checkpoint cannot be resumed."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes, flushes and renames a temporary file: after a crash a checkpoint is complete or missing."""

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Load plain types only, whatever the arguments: Lightning before 2.6 does not pass `weights_only`."""
        return torch.load(path, map_location, weights_only=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save `checkpoint` as `path`.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.

        """
        # In the same folder, since a rename is atomic only within one file system.
        final = Path(path)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                # Flush to the system and then to the disk; otherwise a rename could survive a power cut without
                # the content.
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            # torch's C++ writer reports a full disk as a RuntimeError with these texts; any other is a bug.
            is_write_error = any(text in str(error) for text in ("PytorchStreamWriter", "unexpected pos"))
            if isinstance(error, RuntimeError) and not is_write_error:
                raise
            raise UserError(f"cannot write the checkpoint {final}: {error}") from None


def best_callback(model: LitModel) -> ModelCheckpoint:
    """Return the callback that saves `best.ckpt`; its folder is set later."""
    return ModelCheckpoint(
        filename=Path(BEST).stem,
        monitor=model.monitor,
        mode=model.monitor_mode,
        auto_insert_metric_name=False,
        # Otherwise a resumed fit would write best-v1.ckpt instead of replacing best.ckpt.
        enable_version_counter=False,
    )


def rotate_in(folder: Path) -> None:
    """Rename last to previous and next to last; at every moment at least one of these files exists."""
    for source, target in ((LAST, PREVIOUS), (NEXT, LAST)):
        if (folder / source).exists():
            (folder / source).replace(folder / target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # so that the renames survive a power cut
    finally:
        os.close(descriptor)


def lasting_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that a run keeps: best, last and those of a user's callbacks.

    The previous checkpoint and files that are being written are not included.
    """
    return sorted(path for path in folder.glob("[!.]*.ckpt") if path.name not in (NEXT, PREVIOUS))


def read_checkpoint(path: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Read the checkpoint `path` onto the CPU and check that it is whole and fits `model`.

    Raises:
        UserError: the file is missing or damaged, or holds another model's weights.

    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums that torch.save writes
            if (damaged := archive.testzip()) is not None:
                raise UserError(f"the checkpoint {path} is damaged: wrong checksum of {damaged}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _check_shapes(checkpoint["state_dict"], model.state_dict())
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        what = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} does not fit this model or is damaged: {what}") from None
    return checkpoint


def load_weights(model: torch.nn.Module, path: Path) -> dict[str, Any]:
    """Load the weights in `path` into `model`; return the checkpoint.

    Raises:
        UserError: the file does not load, or holds another model's weights.

    """
    checkpoint = read_checkpoint(path, model)
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint


def _check_shapes(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    # Checked before load_state_dict, whose error would list every weight of the network.
    if odd := sorted(found.keys() ^ wanted.keys()):
        raise ValueError(f"it has other weights, {odd[0]} for one")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}")
