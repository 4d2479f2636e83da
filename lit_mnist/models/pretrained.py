"""Weights that a model takes over from another run's checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_mnist.errors import UserError


class Pretrained:
    """Keeps account of whether a model has the weights that it is to start from.

    They are taken from the file when the model is made. A model that is about to be loaded from its own checkpoint
    needs the file no longer, so one that is not there is an error only when the model is first used without.

    Args:
        model: What uses the weights.
        flag: The hyperparameter that names the file.
        path: A checkpoint of Lightning's; without it the weights stay random.

    """

    def __init__(self, model: nn.Module, flag: str, path: str | None) -> None:
        self.flag, self.path = flag, path
        self.is_missing = path is not None and not Path(path).is_file()
        self.is_random = path is None
        model.register_load_state_dict_post_hook(self._loaded)  # type: ignore[no-untyped-call]

    def take(self, module: nn.Module, prefix: str, new: Sequence[str] = ()) -> None:
        """Load into `module` the file's weights whose names begin with `prefix`, if there is a file.

        Args:
            module: Where they go, their names less the prefix.
            prefix: Such as `encoder.`.
            new: Beginnings of those names in `module` that the file does not have.

        Raises:
            UserError: the file is damaged, or its weights are others.

        """
        if self.path is None or self.is_missing:
            return
        weights = {
            name.removeprefix(prefix): value for name, value in self._read().items() if name.startswith(prefix)
        }
        own = {name: value for name, value in module.state_dict().items() if name.startswith(tuple(new))}
        try:
            if theirs := own.keys() & weights.keys():
                raise RuntimeError(f"it goes on to {min(theirs)}")
            module.load_state_dict(weights | own)
        except RuntimeError as error:  # torch's way to say that names or shapes differ
            what = " ".join(str(error).split())[:200]
            raise UserError(f"--model.{self.flag} {self.path} holds another network: {what}") from None

    def check(self) -> None:
        """Refuse to go on without weights that were asked for.

        Raises:
            UserError: the file is not there, and no checkpoint was loaded instead.

        """
        if self.is_missing:
            raise UserError(f"--model.{self.flag}: there is no checkpoint {self.path}")

    def warn_if_random(self, what: str) -> None:
        """Warn of `what` staying as the random numbers made it."""
        if self.is_random:
            rank_zero_warn(f"{what} has random weights: give --model.{self.flag}")

    def _read(self) -> dict[str, Tensor]:
        try:
            checkpoint = torch.load(str(self.path), map_location="cpu", weights_only=True)
            return dict(checkpoint["state_dict"])
        except Exception as error:  # a damaged file raises whatever the unpickler stumbles on
            what = " ".join(str(error).split())[:200]
            raise UserError(f"--model.{self.flag} {self.path} is damaged, or no checkpoint: {what}") from None

    def _loaded(self, module: nn.Module, incompatible: Any) -> None:
        self.is_missing = self.is_random = False
