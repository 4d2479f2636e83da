"""Pictures in: datasets in memory, batches as slices of them, corruptions on the device."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_mnist.data.datamodules import (
        FashionMNISTDataModule,
        MiniMNISTDataModule,
        MNISTDataModule,
        PictureDataModule,
    )
    from lit_mnist.data.loader import Batch, Changes, ResidentLoader

__all__ = [
    "Batch",
    "Changes",
    "FashionMNISTDataModule",
    "MNISTDataModule",
    "MiniMNISTDataModule",
    "PictureDataModule",
    "ResidentLoader",
]


def __getattr__(name: str) -> Any:
    """Import the public classes when they are asked for: `lit-mnist data` has no need to wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_mnist.data import loader
    from lit_mnist.data import datamodules as datamodule

    return getattr(datamodule, name, None) or getattr(loader, name)
