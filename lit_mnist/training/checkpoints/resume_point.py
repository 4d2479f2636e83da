"""A run that is to go on: its configuration, its newest good checkpoint, and how the new flags differ."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from lit_mnist.errors import UsageError, UserError
from lit_mnist.tracking.folder import CONFIG, read_record
from lit_mnist.tracking.queries.lookup import fetch_folder, find_unfinished, local_folder, status_of
from lit_mnist.training.checkpoints.saved_state import stop_reason

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class ResumePoint:
    """What a run that is to go on has left behind."""

    run_id: str
    folder: Path
    status: str

    @property
    def config(self) -> Path:
        """The configuration it went by in the end."""
        return self.folder / CONFIG

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints lie."""
        return self.folder / CHECKPOINTS

    def forget(self) -> None:
        """Remove what was fetched, where nothing more is to be done with it."""
        if read_record(self.folder) is None:
            shutil.rmtree(self.folder, ignore_errors=True)


def find_resume_point(wanted: str, offline: bool, led: str | None = None) -> ResumePoint:
    """The run `wanted`, an id or its beginning, or `last`: the newest unfinished one.

    What a finished run has left in the store is fetched into its folder.

    Args:
        wanted: Which run.
        offline: Ask no store.
        led: The run, where this is a process that works for the run's rank 0.

    Raises:
        UserError: there is no such run, or it has no configuration to go on with.

    """
    if wanted == "last":
        wanted = led or find_unfinished(offline)
    folder = local_folder(wanted)
    if folder is None or not (folder / CONFIG).exists():
        folder = fetch_folder(wanted, (CONFIG,), (CHECKPOINTS,))
    if not (folder / CONFIG).exists():
        raise UserError(f"run {folder.name} has no {CONFIG}: `lit-mnist fit` did not make it")
    return ResumePoint(folder.name, folder, "RUNNING" if led else status_of(folder, offline))


def config_diff(former: Path, config: str) -> dict[str, str]:
    """How the configuration `config` (YAML) differs from that in the file `former`: name to `old → new`."""
    old, new = (dict(_flat(yaml.safe_load(text))) for text in (former.read_text(), config))
    return {
        name: f"{old.get(name)} → {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def nothing_left(checkpoint: Mapping[str, Any], trainer: Trainer, model: LightningModule) -> str | None:
    """Why training from `checkpoint` would end at once by what is asked for now; None where it would not.

    Args:
        checkpoint: Where it would go on.
        trainer: Whose limits and callbacks count.
        model: Whose own callbacks count, too, which the Trainer does not know yet.

    Raises:
        UsageError: more epochs are trained than are asked for.

    """
    step = checkpoint["global_step"]
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer.max_steps != -1 and step >= trainer.max_steps:
        return f"at step {step:,} of {trainer.max_steps:,}"
    if trainer.max_epochs not in (None, -1) and epochs >= trainer.max_epochs:
        if epochs > trainer.max_epochs:
            raise UsageError(f"--trainer.max_epochs {trainer.max_epochs}: {epochs} epochs are trained already")
        return f"at epoch {epochs} of {trainer.max_epochs}"
    own = model.configure_callbacks()
    callbacks = [*trainer.callbacks, *(own if isinstance(own, Sequence) else [own])]  # type: ignore[attr-defined]
    if epochs < (trainer.min_epochs or 0) or step < (trainer.min_steps or 0):
        return None
    reason = stop_reason(checkpoint, callbacks)
    return reason and f"{reason} at step {step:,}"


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names as on the command line."""
    for key, value in fields.items():
        if key == "config":
            continue
        name = prefix.rstrip(".") if key == "class_path" else f"{prefix}{key}"
        if key == "init_args":
            yield from _flat(value, prefix)
        elif isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
