"""Measurements of Zhang's experiments that are not a metric of a run."""

from typing import cast

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.models import CNN
from lit_mnist.papers.report.trained import TrainedStage
from lit_mnist.papers.zhang import decompressed


class _Untrained:
    """A stage whose model has random weights: `decompressed` needs its model and data only."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._model = CNN(channels=[2, 3]).eval()
        self._data = MiniMNISTDataModule(train_per_class=60)
        for stage in ("fit", "test"):
            self._data.setup(stage)

    def model(self) -> CNN:
        return self._model

    def data(self) -> MiniMNISTDataModule:
        return self._data


def test_decompression_is_a_ridge_regression_from_the_features_to_the_pixels() -> None:
    stage = _Untrained()
    network, data = stage.model().network, stage.data()
    assert data.train is not None and data.test is not None
    pixels = [(images.float() / 255).flatten(1).numpy() for images in (data.train[0], data.test[0])]
    assert isinstance(network, nn.Sequential)
    with torch.inference_mode():
        features = [network[:-1](images.float() / 255).numpy() for images in (data.train[0], data.test[0])]
    with_bias = np.column_stack([features[0], np.ones(len(features[0]))])
    ridge = 1e-4 * float((with_bias**2).sum()) / with_bias.shape[1]
    predicted = Ridge(alpha=ridge).fit(features[0], pixels[0]).predict(features[1])
    explained = 1 - ((predicted - pixels[1]) ** 2).mean() / ((pixels[1] - pixels[0].mean(0)) ** 2).mean()
    assert decompressed(cast(TrainedStage, stage)) == pytest.approx(explained, abs=0.01)
    assert 0.2 < explained < 1
