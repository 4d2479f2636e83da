"""Stratified choices of images: the validation split, and the papers' so many images a class."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_mnist.data.randomness import keyed_generator, keyed_seed


def stratified(labels: Tensor, size: int, *key: int | str) -> tuple[Tensor, Tensor]:
    """Choose `size` of the images so that each class keeps its share, as a function of `key`.

    Args:
        labels: (N,) class of each image.
        size: how many to choose, 0 to N.
        key: what the choice depends on, beside the labels.

    Returns:
        Indices of the chosen (size,) and of the others (N - size,), each in ascending order.

    """
    order = torch.randperm(len(labels), generator=keyed_generator(*key))
    classes, counts = torch.unique(labels, return_counts=True)
    chosen = torch.cat(
        [
            order[labels[order] == label][:share]
            for label, share in zip(classes.tolist(), _shares(counts, size), strict=True)
        ]
    )
    others = torch.ones(len(labels), dtype=torch.bool)
    others[chosen] = False
    return chosen.sort().values, others.nonzero().squeeze(1)


def per_class(labels: Tensor, count: int, *key: int | str) -> Tensor:
    """Indices of `count` images of each class, ascending, as a function of `key`.

    Raises:
        ValueError: a class has fewer images than `count`.

    """
    order = torch.randperm(len(labels), generator=keyed_generator(*key))
    classes = _checked_classes(labels, count)
    return torch.cat([order[labels[order] == label][:count] for label in classes]).sort().values


def typical_per_class(images: Tensor, labels: Tensor, count: int, *key: int | str) -> Tensor:
    """Indices of `count` typical images of each class, ascending: those nearest to the centres of k-means.

    Args:
        images: (N, ...) of any type; distances are those of their pixels.
        labels: (N,) class of each image.
        count: how many of each class.
        key: what k-means starts from.

    Raises:
        ValueError: a class has fewer images than `count`.

    """
    from sklearn.cluster import KMeans

    pixels = images.flatten(1).float().numpy()
    chosen = []
    for label in _checked_classes(labels, count):
        members = (labels == label).nonzero().squeeze(1)
        start = keyed_seed(*key, label) % 2**32
        distances = KMeans(count, n_init=1, random_state=start).fit_transform(pixels[members])
        chosen.append(members[_nearest(distances)])
    return torch.cat(chosen).sort().values


def _checked_classes(labels: Tensor, count: int) -> list[int]:
    classes, counts = torch.unique(labels, return_counts=True)
    if int(counts.min()) < count:
        raise ValueError(f"class {int(classes[counts.argmin()])} has only {int(counts.min())} images")
    return [int(label) for label in classes]


def _nearest(distances: NDArray[np.float32]) -> Tensor:
    """For each centre the image nearest to it, no image twice; `distances` is (images, centres)."""
    taken: list[int] = []
    for column in distances.T:
        taken.append(next(int(i) for i in column.argsort(kind="stable") if int(i) not in taken))
    return torch.tensor(taken)


def _shares(counts: Tensor, size: int) -> list[int]:
    """How many of each class make up `size` in proportion, by largest remainder."""
    exact = counts.double() * size / counts.sum()
    shares = exact.floor().long()
    missing = size - int(shares.sum())
    shares[(exact - shares).argsort(descending=True, stable=True)[:missing]] += 1
    return [int(share) for share in shares]
