"""What a representation is worth to others than the network that made it."""

import numpy as np
from numpy.typing import NDArray

from lit_mnist.data import ImageDataModule
from lit_mnist.papers.report.trained import test_split, train_split

Codes = NDArray[np.float32]
Labels = NDArray[np.int64]
NEIGHBOURS = 5


def linear_probe(train: Codes, train_labels: Labels, test: Codes, test_labels: Labels) -> float:
    """Accuracy of logistic regression, fitted on `train` (N, D), on `test`."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = train.mean(0), train.std(0).clip(1e-6)
    probe = LogisticRegression(max_iter=200, tol=1e-3).fit((train - mean) / scale, train_labels)
    return float(probe.score((test - mean) / scale, test_labels))


def nearest_neighbours(
    train: Codes, train_labels: Labels, test: Codes, test_labels: Labels, count: int = NEIGHBOURS
) -> float:
    """Accuracy on `test` of the vote of the `count` nearest of `train` (N, D)."""
    from sklearn.neighbors import KNeighborsClassifier

    return float(KNeighborsClassifier(count).fit(train, train_labels).score(test, test_labels))


def mean_image_mse(data: ImageDataModule) -> float:
    """Squared error per pixel of the mean training image as the answer to every test image."""
    mean = train_split(data).clean.mean(0)
    return float((test_split(data).clean - mean).square().mean())
