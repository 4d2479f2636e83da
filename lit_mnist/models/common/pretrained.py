"""Weights that a model takes from another run's checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_mnist.errors import UserError, one_line


class Pretrained:
    """Loads a model's initial weights from a checkpoint, and records whether they are still missing.

    They are loaded when the model is created. A missing file is not an error at that point, since a model that
    will be loaded from its own checkpoint does not need it. `check`, called before the model is used, raises if
    neither file was loaded.

    Args:
        model: The model that uses the weights.
        flag: The hyperparameter that names the file, for messages.
        path: A Lightning checkpoint; without it the weights stay random.

    """

    def __init__(self, model: nn.Module, flag: str, path: str | None) -> None:
        self.flag, self.path = flag, path
        self.is_missing = path is not None and not Path(path).is_file()
        # Separate from `is_missing`: a missing file is an error, while random weights may be intended.
        self.is_random = path is None
        # Called by load_state_dict, and so after a resume, `test` and `predict`, which load the model's own
        # checkpoint.
        model.register_load_state_dict_post_hook(self._on_load_state_dict)  # type: ignore[no-untyped-call]

    def load_into(self, module: nn.Module, prefix: str, new: Sequence[str] = ()) -> None:
        """Load the checkpoint's weights whose names start with `prefix` into `module`, if there is a checkpoint.

        Args:
            module: Has the same weights, without the prefix in their names.
            prefix: For example `encoder.`.
            new: Prefixes of those weights of `module` that the checkpoint does not have.

        Raises:
            UserError: The file is damaged, or its weights do not fit.

        """
        if self.path is None or self.is_missing:
            return
        try:
            checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
            # For example only the encoder of an autoencoder's checkpoint, with the prefix removed.
            weights = {
                name.removeprefix(prefix): value
                for name, value in checkpoint["state_dict"].items()
                if name.startswith(prefix)
            }
        except Exception as error:  # which exception a damaged file raises depends on where it is damaged
            raise UserError(
                f"--model.{self.flag} {self.path} is not a readable checkpoint: {one_line(error)[:200]}"
            ) from None
        # load_state_dict is strict, so new layers are passed with the weights that they have.
        own = {name: value for name, value in module.state_dict().items() if name.startswith(tuple(new))}
        try:
            if unexpected := own.keys() & weights.keys():
                raise RuntimeError(f"it also has {min(unexpected)}, which is a new layer here")
            module.load_state_dict(weights | own)
        except RuntimeError as error:  # what load_state_dict raises if names or shapes differ
            raise UserError(
                f"--model.{self.flag} {self.path} does not fit this network: {one_line(error)[:200]}"
            ) from None

    def check(self) -> None:
        """Check that the weights are there.

        Raises:
            UserError: The file is missing, and no other checkpoint was loaded into the model since.

        """
        if self.is_missing:
            raise UserError(f"--model.{self.flag}: there is no checkpoint {self.path}")

    def warn_if_random(self, what: str) -> None:
        """Warn that `what` has random weights, unless a checkpoint was loaded."""
        if self.is_random:
            rank_zero_warn(f"{what} has random weights: give --model.{self.flag}")

    def _on_load_state_dict(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.is_missing = self.is_random = False
