"""Stratified choices of pictures: the validation split, and the papers' so many pictures a class."""

import torch
from torch import Tensor

from lit_mnist.data.randomness import keyed_generator


def stratified(labels: Tensor, size: int, *key: int | str) -> tuple[Tensor, Tensor]:
    """Choose `size` of the pictures so that each class keeps its share, as a function of `key`.

    Args:
        labels: (N,) class of each picture.
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
    """Indices of `count` pictures of each class, ascending, as a function of `key`.

    Raises:
        ValueError: a class has fewer pictures than `count`.

    """
    order = torch.randperm(len(labels), generator=keyed_generator(*key))
    classes, counts = torch.unique(labels, return_counts=True)
    if int(counts.min()) < count:
        raise ValueError(f"class {int(classes[counts.argmin()])} has only {int(counts.min())} pictures")
    return torch.cat([order[labels[order] == label][:count] for label in classes.tolist()]).sort().values


def _shares(counts: Tensor, size: int) -> list[int]:
    """How many of each class make up `size` in proportion, by largest remainder."""
    exact = counts.double() * size / counts.sum()
    shares = exact.floor().long()
    missing = size - int(shares.sum())
    shares[(exact - shares).argsort(descending=True, stable=True)[:missing]] += 1
    return [int(share) for share in shares]
