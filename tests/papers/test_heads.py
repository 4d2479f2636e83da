"""Softmax layers that are trained together equal layers trained alone, with torch's optimiser or by a Trainer."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.models import StackedClassifier
from lit_mnist.papers.report.heads import Heads, train_heads


def test_each_of_many_layers_equals_a_layer_trained_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(3, 20, 12, generator=generator)
    labels = torch.randint(0, 4, (3, 20), generator=generator)
    heads = Heads.initial(3, 12, 4, generator)
    trained, cost = train_heads(heads, codes, labels, 0.5, 300)
    for i in range(3):
        layer = nn.Linear(12, 4)
        layer.weight.data, layer.bias.data = heads.weights[i].T.clone(), heads.biases[i, 0].clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(codes[i]), labels[i]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.testing.assert_close(trained.weights[i].T, layer.weight.data, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(trained.biases[i, 0], layer.bias.data, rtol=1e-3, atol=1e-4)
        own = nn.functional.cross_entropy(layer(codes[i]), labels[i]).item()
        assert float(cost[i]) == pytest.approx(own, 1e-3)
        accuracy = layer(codes[0]).argmax(1).eq(labels[0]).float().mean()
        assert float(trained.accuracy(codes[0], labels[0])[i]) == float(accuracy)


@pytest.mark.filterwarnings("ignore")
def test_a_layer_equals_that_of_a_classifier_trained_by_a_trainer() -> None:
    torch.manual_seed(0)
    model = StackedClassifier([20], optimizer="sgd", lr=0.5)
    data = MiniMNISTDataModule(train_per_class=2, batch_size=20, val_size=100)
    data.setup("fit")
    assert data.train is not None
    linear = model.head[-1]
    heads = Heads(linear.weight.data.T.clone()[None], linear.bias.data.clone()[None, None])
    images, labels = data.train
    with torch.inference_mode():
        codes = model.encoder(images.float().div(255))[None]
    trained, _ = train_heads(heads, codes, labels[None], 0.5, 40)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=-1, max_steps=40, limit_val_batches=0, accelerator="cpu", **quiet).fit(model, data)
    torch.testing.assert_close(trained.weights[0].T, linear.weight.data, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained.biases[0, 0], linear.bias.data, rtol=1e-3, atol=1e-4)
