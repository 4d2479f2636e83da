"""What the findings measure, against numbers worked out otherwise."""

import pytest
import torch

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.data.corruptions import salt_and_pepper
from lit_mnist.papers.findings.denoiser import posterior_mean
from lit_mnist.papers.findings.momentum import PROBES, TRACES, VARIANTS, train_variant
from lit_mnist.papers.report.trained import train_split


def _images(count: int = 300) -> torch.Tensor:
    data = MiniMNISTDataModule()
    data.setup("fit")
    return train_split(data).clean[:count].flatten(1)


def test_the_posterior_mean_equals_bayes_rule_written_out() -> None:
    images = torch.tensor([[0.0, 0.5], [1.0, 0.8], [0.2, 0.4]])
    noisy, level, deviation = torch.tensor([[1.0, 0.45]]), 0.2, 0.1

    def near(pixel: float, value: float) -> float:
        return float(torch.exp(torch.tensor(-((pixel - value) ** 2) / (2 * deviation**2))))

    # The first pixel is salt, or a clean one near 1; the second one is between 0 and 1, and so it was kept.
    weights = [(level + 0.6 * near(a, 1.0)) * near(b, 0.45) for a, b in images.tolist()]
    noise = [level / (level + 0.6 * near(a, 1.0)) for a, _ in images.tolist()]
    first = sum(w * (q * a + (1 - q)) for w, q, (a, _) in zip(weights, noise, images.tolist(), strict=True))
    expected = torch.tensor([[first / sum(weights), 0.45]])
    torch.testing.assert_close(posterior_mean(noisy, images, level, deviation), expected)


def test_at_noise_one_half_the_posterior_mean_is_the_mean_image() -> None:
    images = _images()
    noisy = salt_and_pepper(images[:20], 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(posterior_mean(noisy, images, 0.5, 0.2), images.mean(0).expand(20, -1))


def test_the_posterior_mean_restores_unseen_digits() -> None:
    every = _images(3000)
    unseen, images = every[::10], every[torch.arange(3000) % 10 != 0]
    noisy = salt_and_pepper(unseen, 0.2, torch.Generator().manual_seed(0))
    error = (posterior_mean(noisy, images, 0.2, 0.2) - unseen).square().mean()
    assert error < 0.6 * (images.mean(0) - unseen).square().mean()


@pytest.mark.parametrize("name", ["paper", "centred"])
def test_the_mean_of_sigmoid_codes_kills_neurons(name: str) -> None:
    """The codes of random sigmoid units, whose mean is as far from 0 as that of a trained autoencoder."""
    images = _images(1000)
    weights = torch.randn(784, 98, generator=torch.Generator().manual_seed(0)) / 28
    codes, labels = torch.sigmoid(2 * images @ weights), _labels(1000)
    _, (shift, factor), traces = train_variant(VARIANTS[name], (codes, labels), (codes, labels), seed=0, steps=100)
    assert (
        traces.pop("diverged") == [0.0]
        and traces.keys() == TRACES.keys()
        and len(traces["acc"]) == sum(step <= 100 for step in PROBES)
    )
    assert (traces["dead"][-1] > 0.3) == (name == "paper"), traces["dead"]
    torch.testing.assert_close(shift, codes.mean(0) if name == "centred" else torch.zeros(98))
    assert factor == 1
    again = train_variant(VARIANTS[name], (codes, labels), (codes, labels), seed=0, steps=5)[2]
    assert again["acc"] == traces["acc"][:1]  # a function of the seed


def _labels(count: int) -> torch.Tensor:
    data = MiniMNISTDataModule()
    data.setup("fit")
    assert data.train is not None
    return data.train[1][:count]


def test_the_four_inputs_differ_in_mean_and_length_only() -> None:
    codes = torch.rand(500, 9, generator=torch.Generator().manual_seed(0)) + torch.arange(9)
    lengths = {}
    for name in ("paper", "centred", "shrunk", "enlarged"):
        shift, factor = VARIANTS[name].prepare(codes)
        inputs = (codes - shift) * factor
        lengths[name] = float(inputs.square().sum(1).mean().sqrt())
        assert (float(inputs.mean(0).norm()) < 1e-4) == (name in ("centred", "enlarged"))
    assert lengths["shrunk"] == pytest.approx(lengths["centred"], 1e-3)
    assert (
        lengths["enlarged"] == pytest.approx(lengths["paper"], 1e-3) and lengths["paper"] > 5 * lengths["centred"]
    )
