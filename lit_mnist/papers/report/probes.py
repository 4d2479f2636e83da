"""Measures of the information in frozen features, without training a network: classifiers and a linear decoder."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_mnist.data import ImageDataModule
from lit_mnist.models import CNN, LitModel
from lit_mnist.papers.report.trained import Codes, Labels, test_split, train_split


def linear_probe(train: Codes, train_labels: Labels, test: Codes, test_labels: Labels) -> float:
    """Accuracy on `test` (M, D) of a logistic regression fitted on `train` (N, D)."""
    from sklearn.linear_model import LogisticRegression

    # Standardised, since codes of a sigmoid layer have small differences and a large mean. A constant feature
    # becomes 0.
    mean, scale = train.mean(0), train.std(0).clip(1e-6)
    probe = LogisticRegression(max_iter=200, tol=1e-3).fit((train - mean) / scale, train_labels)
    return float(probe.score((test - mean) / scale, test_labels))


def nearest_neighbours(
    train: Codes, train_labels: Labels, test: Codes, test_labels: Labels, count: int = 5
) -> float:
    """Accuracy on `test` (M, D) of the majority vote of the `count` nearest neighbours in `train` (N, D)."""
    from sklearn.neighbors import KNeighborsClassifier

    return float(KNeighborsClassifier(count).fit(train, train_labels).score(test, test_labels))


def linear_decoder(cnn: LitModel, train: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a linear map from the CNN's features, the 2,548 inputs of its last layer, to the pixels.

    It is the ridge regression on the images `train` (N, C, H, W), in closed form.

    Returns:
        A function that maps images to their reconstructions from the features, of the same shape.

    """
    assert isinstance(cnn, CNN) and isinstance(cnn.network, nn.Sequential)
    features, mean = cnn.network[:-1], train.mean(0).flatten()

    def extract(images: Tensor) -> Tensor:
        return torch.nn.functional.pad(features(images), (0, 1), value=1.0)  # the constant is the bias

    # The normal equations, summed over batches, since the features of all 54,000 images would take 550 MB.
    with torch.inference_mode():
        width = extract(train[:1]).shape[1]
        gram, moments = torch.zeros(width, width), torch.zeros(width, mean.numel())
        for images in torch.split(train, 1000):
            codes = extract(images)
            gram += codes.T @ codes
            moments += codes.T @ (images.flatten(1) - mean)
        # The ridge avoids a singular matrix due to neurons that are always 0; it is small compared with the mean
        # eigenvalue.
        weights = torch.linalg.solve(gram + 1e-4 * gram.trace() / width * torch.eye(width), moments)

    def decode(images: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [mean + extract(batch) @ weights for batch in torch.split(images, 1000)]
        return torch.cat(parts).view_as(images)

    return decode


def explained_by(cnn: LitModel, data: ImageDataModule) -> float:
    """Share of the test images' variance that a linear map from the CNN's features explains (R²).

    Args:
        cnn: The network.
        data: The data module, set up for training and testing.

    """
    train, test = train_split(data).clean, test_split(data).clean
    # Fitted on training images and evaluated on test images.
    error = linear_decoder(cnn, train)(test) - test
    return float(1 - error.square().mean() / (test - train.mean(0)).square().mean())
