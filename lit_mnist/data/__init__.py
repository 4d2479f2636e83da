"""Images in: datasets in memory, batches as slices of them, corruptions on the device."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_mnist.data.datamodules import (
        FashionMNISTDataModule,
        ImageDataModule,
        MiniMNISTDataModule,
        MNISTDataModule,
    )
    from lit_mnist.data.loader import Batch, BatchTransforms, InMemoryLoader

__all__ = [
    "Batch",
    "BatchTransforms",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "InMemoryLoader",
    "MNISTDataModule",
    "MiniMNISTDataModule",
]


def __getattr__(name: str) -> Any:
    """Import the public classes when they are asked for: `lit-mnist data` has no need to wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_mnist.data import datamodules as datamodule
    from lit_mnist.data import loader

    return getattr(datamodule, name, None) or getattr(loader, name)
