"""Checkpoints of a run: the best validation value, the last step, and the one before it."""

import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_mnist.errors import UserError
from lit_mnist.models import LitModel

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
NEXT = f"next-{LAST}"
"""A whole checkpoint that is about to become the last."""
STATE = "lit_mnist"
"""The entry for what Lightning does not keep; without it there is no going on."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, flushes, renames: a checkpoint is there whole or not at all.

    Args:
        read: What the checkpoint to resume from holds, where it was read already.

    """

    def __init__(self, read: dict[str, Any] | None = None) -> None:
        self._read = read

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Return the content of `path`, or what was read before.

        Loads plain types only, whatever the caller asks for: Lightning before 2.6 has no way to ask for it.
        """
        read, self._read = self._read, None
        return torch.load(path, map_location, weights_only=True) if read is None else read

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
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            # torch's C++ writer reports a full disk as a RuntimeError of these texts; any other one is a bug.
            is_write_error = any(text in str(error) for text in ("PytorchStreamWriter", "unexpected pos"))
            if isinstance(error, RuntimeError) and not is_write_error:
                raise
            raise UserError(f"cannot write the checkpoint {final}: {error}") from None


def best_callback(model: LitModel) -> ModelCheckpoint:
    """The callback that keeps `best.ckpt`, in a folder it is yet to be given."""
    return ModelCheckpoint(
        filename=Path(BEST).stem,
        monitor=model.monitor,
        mode=model.monitor_mode,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


def rotate_in(folder: Path) -> None:
    """Make the newest checkpoint the last, and the last the one before it; at each moment one of them is there."""
    for source, target in ((LAST, PREVIOUS), (NEXT, LAST)):
        if (folder / source).exists():
            (folder / source).replace(folder / target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the renames, too, have to outlive a power cut
    finally:
        os.close(descriptor)


def newest_good(folder: Path, model: LitModel) -> tuple[Path, dict[str, Any]] | None:
    """Path and content of the checkpoint in `folder` to go on from; None where there is none.

    That is the newest that loads and is of `model`; one that does not is named in a warning. Where the best
    checkpoint is lost, it is an older one, if that one's training would make it again.

    Raises:
        UserError: there are checkpoints, and none of them will do.

    """
    defects: list[str] = []
    good = _good(folder, model, defects)
    newest = next(good, None)
    if newest is None:
        if defects:
            raise UserError(f"no checkpoint in {folder} can be gone on from: {defects[0]}")
        return None
    if defects:
        warnings.warn(f"{'; '.join(defects)}; taking {newest[0].name}, the one before", stacklevel=2)
    best = _best_score(newest[1])
    if best is None or not (lost := _defect(folder / BEST, model)):
        return newest
    older = next(good, None)
    if older is not None and _best_score(older[1]) != best:
        warnings.warn(f"{lost}; going on from {older[0].name}, which makes it again", stacklevel=2)
        return older
    warnings.warn(f"{lost}; the best checkpoint will be the best from here on", stacklevel=2)
    for key in [key for key in newest[1]["callbacks"] if "ModelCheckpoint" in key]:
        del newest[1]["callbacks"][key]
    return newest


def _good(folder: Path, model: LitModel, defects: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The checkpoints that load, newest first; `defects` tells of the others."""
    for path in (folder / name for name in (NEXT, LAST, PREVIOUS)):
        if path.exists():
            try:
                checkpoint = read_checkpoint(path, model)
                if STATE not in checkpoint:
                    raise UserError(f"the checkpoint {path} is not one that `lit-mnist fit` has written")
            except UserError as error:
                defects.append(str(error))
            else:
                yield path, checkpoint


def read_checkpoint(path: Path, model: torch.nn.Module) -> dict[str, Any]:
    """The checkpoint in `path`, whose every byte is checked.

    Raises:
        UserError: the file is missing or damaged, or holds another model's weights.

    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums that it writes
            if (damaged := archive.testzip()) is not None:
                raise UserError(f"the checkpoint {path} is damaged: wrong checksum of {damaged}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _check_shapes(checkpoint["state_dict"], model.state_dict())
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its readers stumble on
        what = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} does not fit this model or is damaged: {what}") from None
    return checkpoint


def load_weights(model: torch.nn.Module, path: Path) -> dict[str, Any]:
    """Load the weights in `path` into `model`; returns the checkpoint.

    Raises:
        UserError: the file does not load, or holds another model's weights.

    """
    checkpoint = read_checkpoint(path, model)
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint


def _check_shapes(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    if odd := sorted(found.keys() ^ wanted.keys()):
        raise ValueError(f"its weights are others, {odd[0]} for one")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}")


def _defect(path: Path, model: LitModel) -> str:
    """Why the checkpoint in `path` cannot be used; empty where it can."""
    try:
        read_checkpoint(path, model)
    except UserError as error:
        return str(error)
    return ""


def _best_score(checkpoint: dict[str, Any]) -> float | None:
    """The monitored value of the best checkpoint that `checkpoint` knows of."""
    for state in checkpoint["callbacks"].values():
        if Path(str(state.get("best_model_path", ""))).name == BEST:
            return float(state["best_model_score"])
    return None
