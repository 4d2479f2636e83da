"""Checkpoint files: written atomically, rotated, read with every byte checked."""

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
"""A complete checkpoint that is about to be renamed to `last.ckpt`."""
STATE = "lit_mnist"
"""The checkpoint's entry for what Lightning does not keep; a checkpoint without it cannot be resumed."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, flushes, renames: after a crash a checkpoint is there whole or not at all."""

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Load plain types only, whatever the caller asks for: Lightning before 2.6 cannot ask for it."""
        return torch.load(path, map_location, weights_only=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save `checkpoint` as `path`.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.

        """
        # Beside the final name: a rename is atomic within one file system only.
        final = Path(path)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                # From Python to the system, and from the system to the disk; a rename alone could survive a power
                # cut without the content.
                file.flush()
                os.fsync(file.fileno())
            # From here on the checkpoint exists, whole.
            temporary.replace(final)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            # torch's C++ writer reports a full disk as a RuntimeError of these texts; any other one is a bug.
            is_write_error = any(text in str(error) for text in ("PytorchStreamWriter", "unexpected pos"))
            if isinstance(error, RuntimeError) and not is_write_error:
                raise
            raise UserError(f"cannot write the checkpoint {final}: {error}") from None


def best_callback(model: LitModel) -> ModelCheckpoint:
    """Return the callback that keeps `best.ckpt`; its folder has yet to be set."""
    return ModelCheckpoint(
        filename=Path(BEST).stem,
        monitor=model.monitor,
        mode=model.monitor_mode,
        auto_insert_metric_name=False,
        # Otherwise a resumed fit would write best-v1.ckpt beside best.ckpt.
        enable_version_counter=False,
    )


def rotate_in(folder: Path) -> None:
    """Rename last to previous and next to last; at each moment at least one of them is there."""
    for source, target in ((LAST, PREVIOUS), (NEXT, LAST)):
        if (folder / source).exists():
            (folder / source).replace(folder / target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the renames, too, have to survive a power cut
    finally:
        os.close(descriptor)


def lasting_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that a run keeps: best, last and those of a user's callbacks.

    Not the one before the last, nor files that are still being written.
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
    # Before load_state_dict, whose error would list every weight of the network.
    if odd := sorted(found.keys() ^ wanted.keys()):
        raise ValueError(f"it has other weights, {odd[0]} for one")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}")
