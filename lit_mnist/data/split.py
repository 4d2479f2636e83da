"""Stratified selections of images: the validation split, and a fixed number of images per class."""

from typing import Any

import torch
from torch import Tensor

from lit_mnist.data.randomness import keyed_generator, keyed_seed


def stratified(labels: Tensor, size: int, *key: int | str) -> tuple[Tensor, Tensor]:
    """Select `size` images so that each class keeps its share; `key` determines which.

    Args:
        labels: (N,) class of each image.
        size: How many to select, 0 to N.
        key: Seed and purpose of the selection.

    Returns:
        Indices of the selected images (size,) and of the others (N - size,), each in ascending order.

    """
    # One random order of all images; each class takes its first ones in it.
    order = torch.randperm(len(labels), generator=keyed_generator(*key))
    classes, counts = torch.unique(labels, return_counts=True)
    # Largest remainder: round each class's share down, and give what is missing to the largest fractions.
    exact = counts.double() * size / counts.sum()  # (classes,) shares before rounding
    shares = exact.floor().long()
    missing = size - int(shares.sum())
    shares[(exact - shares).argsort(descending=True, stable=True)[:missing]] += 1
    pairs = zip(classes.tolist(), shares.tolist(), strict=True)
    chosen = torch.cat([order[labels[order] == label][:share] for label, share in pairs])
    others = torch.ones(len(labels), dtype=torch.bool)
    others[chosen] = False
    return chosen.sort().values, others.nonzero().squeeze(1)


def per_class(
    labels: Tensor, count: int, *key: int | str, choice: str = "random", images: Tensor | None = None
) -> Tensor:
    """Select `count` images of each class, and return their indices in ascending order.

    Args:
        labels: (N,) class of each image.
        count: How many of each class.
        key: Seed and purpose of the selection.
        choice: "random", or "typical": the images nearest to the centres of `count` k-means clusters of a class.
        images: (N, ...) of any type, for "typical"; distances are between their pixels.

    Raises:
        ValueError: A class has fewer images than `count`.

    """
    order = torch.randperm(len(labels), generator=keyed_generator(*key))
    classes, counts = torch.unique(labels, return_counts=True)
    if int(counts.min()) < count:
        raise ValueError(f"class {int(classes[counts.argmin()])} has only {int(counts.min())} images")
    chosen = []
    for label in classes.tolist():
        if choice == "random":
            chosen.append(order[labels[order] == label][:count])
            continue
        assert images is not None, "typical images are selected by their pixels"
        # Each class has a seed of its own, so that its choice does not depend on the other classes.
        members = (labels == label).nonzero().squeeze(1)
        chosen.append(members[_nearest_to_centres(images[members], count, keyed_seed(*key, label))])
    return torch.cat(chosen).sort().values


def _nearest_to_centres(images: Tensor, count: int, seed: int) -> Tensor:
    """Indices (count,) of the images nearest to the centres of `count` k-means clusters, none of them twice."""
    from sklearn.cluster import KMeans  # takes a second to import, and is rarely needed

    pixels: Any = images.flatten(1).float().numpy()
    # scikit-learn takes seeds of 32 bits.
    # (images, count): the distance of each image to each centre.
    distances = KMeans(count, n_init=1, random_state=seed % 2**32).fit_transform(pixels)
    taken: list[int] = []  # two clusters may have the same nearest image
    for column in distances.T:
        taken.append(next(int(i) for i in column.argsort(kind="stable") if int(i) not in taken))
    return torch.tensor(taken)
