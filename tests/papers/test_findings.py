"""What the findings measure equals the results of independent computations."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.data.corruptions import salt_and_pepper
from lit_mnist.data.randomness import keyed_generator, keyed_seed
from lit_mnist.papers.findings.denoiser import posterior_mean
from lit_mnist.papers.findings.lottery import (
    count_inconsistent,
    draw_labels,
    nearest_mean_accuracies,
    neighbour_accuracies,
)
from lit_mnist.papers.findings.momentum import PROBES, TRACES, VARIANTS, before_divergence, train_variant
from lit_mnist.papers.findings.phase import DECAYS, RATES, WIDTH, find_boundary, fit_exponents, train_grid
from lit_mnist.papers.report.trained import train_split
from lit_mnist.tracking.queries.statistics import summarise


def _images(count: int = 300) -> torch.Tensor:
    """Flat images of MiniMNIST's training split, (count, 784)."""
    data = MiniMNISTDataModule()
    data.setup("fit")
    return train_split(data).clean[:count].flatten(1)


def test_the_posterior_mean_equals_bayes_rule_written_out() -> None:
    images = torch.tensor([[0.0, 0.5], [1.0, 0.8], [0.2, 0.4]])
    noisy, level, deviation = torch.tensor([[1.0, 0.45]]), 0.2, 0.1

    def near(pixel: float, value: float) -> float:
        return float(torch.exp(torch.tensor(-((pixel - value) ** 2) / (2 * deviation**2))))

    # The first pixel is salt, or a clean pixel near 1. The second one is neither 0 nor 1, so it was not replaced.
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


def test_the_variants_of_the_input_differ_only_in_mean_and_length() -> None:
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
    shift, factor = VARIANTS["standardised"].prepare(10 * codes)
    inputs = (10 * codes - shift) * factor
    torch.testing.assert_close(inputs.std(0), torch.ones(9))
    torch.testing.assert_close(inputs.mean(0), torch.zeros(9), atol=1e-5, rtol=0)


def test_the_usual_remedies_shorten_the_first_steps() -> None:
    codes, labels = _images(640)[:, ::8], _labels(640)
    data = ((codes, labels), (codes, labels))
    velocity = {
        name: train_variant(VARIANTS[name], *data, seed=0, steps=10)[2]["velocity"][-1]
        for name in ("paper", "dampened", "clipped")
    }
    # PyTorch does not dampen the first gradient, so some of its length is left.
    assert velocity["dampened"] < 0.3 * velocity["paper"]
    # Ten gradients of norm 0.1 at most, times the learning rate.
    assert velocity["clipped"] <= 0.05 * 10 * 0.1 < velocity["paper"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(0, "momentum"))
        start = nn.Linear(98, 1000).weight.detach()
    paper, warm = (
        train_variant(VARIANTS[name], *data, seed=0, steps=1)[0][0].weight.detach()
        for name in ("paper", "warm_up")
    )
    assert float((warm - start).norm() / (paper - start).norm()) == pytest.approx(1 / 281, rel=0.01)


def test_each_setting_of_the_grid_equals_the_same_setting_trained_alone() -> None:
    inputs, labels, steps = _images(2000)[::5, ::4], _labels(2000)[::5], 20
    grid = train_grid((inputs, labels), (inputs, labels), seed=3, steps=steps)
    # 400 images: six batches of 64 and one of 16.
    orders = [torch.randperm(400, generator=keyed_generator(3, "phase", epoch)) for epoch in range(3)]
    batches = [batch for order in orders for batch in order.split(64)][:steps]
    for decay, rate in ((0, 8), (4, 8), (8, 4)):
        generator, network = keyed_generator(3, "phase"), nn.Sequential()
        for fan_in, fan_out in ((196, WIDTH), (WIDTH, WIDTH), (WIDTH, 10)):
            bound = fan_in**-0.5
            values = torch.empty(fan_in + 1, fan_out).uniform_(-bound, bound, generator=generator)
            layer = nn.Linear(fan_in, fan_out)
            layer.weight.data, layer.bias.data = values[:-1].T.clone(), values[-1].clone()
            network += nn.Sequential(layer, nn.ReLU()) if fan_out == WIDTH else nn.Sequential(layer)
        optimizer = torch.optim.SGD(network.parameters(), lr=RATES[rate], momentum=1 - DECAYS[decay])
        for batch in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        accuracy = float((network(inputs).argmax(1) == labels).float().mean())
        assert float(grid[decay, rate]) == pytest.approx(accuracy, abs=0.006)  # rounding may flip two images
        assert 0.12 < accuracy < 0.95, "a setting that learns nothing, or everything, would prove little"


def test_the_boundary_is_interpolated_beyond_the_largest_rate_that_works() -> None:
    rows = np.full((3, len(RATES)), 0.1)
    rows[0, 2:5] = 0.9  # the last 0.9 is followed by 0.1: halfway between them
    rows[1] = 0.9  # even the largest rate works: the boundary is outside of the grid
    found = find_boundary(rows)
    assert found[0] == pytest.approx(np.log10(RATES[4]) + 0.125)  # half of a quarter decade
    assert np.isnan(found[1]) and np.isnan(found[2])


def test_exponents_are_fitted_on_the_momenta_that_all_inputs_share() -> None:
    # In a grid of quarter decades the largest rate that works is one cell lower per row, or half a cell.
    steep, flat = (np.full((len(DECAYS), len(RATES)), 0.1) for _ in range(2))
    for i in range(9):
        steep[i, : 10 - i] = 0.9
        flat[i, : 10 - i // 2] = 0.9
        flat[i, 10 - i // 2] = 0.1 if i % 2 else 0.5  # interpolated to half a cell more
    assert fit_exponents({"steep": steep, "flat": flat}) == pytest.approx({"steep": 1, "flat": 0.5})
    # At the first momenta, where even the largest rate of `steep` works, another slope of `flat` does not count.
    steep[:2], flat[:2, 3:] = 0.9, 0.1
    assert fit_exponents({"steep": steep, "flat": flat}) == pytest.approx({"steep": 1, "flat": 0.5})
    assert np.isnan(fit_exponents({"steep": steep}, first=8)["steep"])
    assert np.isnan(fit_exponents({"steep": steep}, works=0.95)["steep"])


def test_the_traces_of_a_variant_end_where_its_first_seed_has_diverged() -> None:
    kept = {0: len(PROBES), 1: 6, 2: 9}  # seed: probes before it diverged
    summaries = {
        f"{trace}_leaky_{step}": summarise([float(min(i, probes - 1)) for probes in kept.values()])
        for trace in TRACES
        for i, step in enumerate(PROBES)
    }
    assert before_divergence("leaky", summaries | {"diverged_leaky": summarise([0.0, 1.0, 1.0])}) == 6
    assert before_divergence("leaky", summaries | {"diverged_leaky": summarise([0.0, 0.0, 0.0])}) == len(PROBES)
    # The weights overflowed at the fourth probe, whose NaN is kept.
    for i, step in enumerate(PROBES):
        summaries[f"velocity_leaky_{step}"] = summarise([float(i), math.nan if i >= 3 else float(i), float(i)])
        summaries |= {
            f"{trace}_leaky_{step}": summarise([1.0, 1.0, 1.0]) for trace in TRACES if trace != "velocity"
        }
    assert before_divergence("leaky", summaries | {"diverged_leaky": summarise([0.0, 1.0, 0.0])}) == 4


def test_with_one_label_per_class_the_nearest_mean_is_the_nearest_neighbour() -> None:
    images, labels = _images(2000), _labels(2000)
    drawn = draw_labels(labels, 3, 7, torch.Generator().manual_seed(0))
    assert (labels[drawn] == labels.unique()[:, None]).all()
    assert all(len(rows.unique()) == rows.numel() for rows in drawn)
    counts = (1, 4, 7)
    found = nearest_mean_accuracies(images, drawn, counts, images, labels)
    for i, count in enumerate(counts):
        for draw in range(3):
            means = torch.stack([images[rows[:count]].mean(0) for rows in drawn[draw]])
            expected = (torch.cdist(images, means).argmin(1) == labels).float().mean()
            assert float(found[i, draw]) == pytest.approx(float(expected), abs=1e-3)
    one = drawn[0, :, 0]
    nearest = KNeighborsClassifier(1).fit(images[one].numpy(), labels[one].numpy())
    score = nearest.score(images.numpy(), labels.numpy())
    assert float(found[0, 0]) == pytest.approx(score, abs=1e-3)
    assert 0.2 < found[0].mean() < found[2].mean()


@pytest.mark.parametrize("neighbours", [1, 5])
def test_neighbours_vote_and_the_nearest_decides_between_equal_counts(neighbours: int) -> None:
    images, labels = _images(900), _labels(900)
    drawn = draw_labels(labels[:600], 3, 5, torch.Generator().manual_seed(0))
    found = neighbour_accuracies(images, labels, drawn, images[600:], labels[600:], neighbours)
    for draw, rows in enumerate(drawn.flatten(1)):
        right = 0
        for image, label in zip(images[600:], labels[600:], strict=True):
            nearest = labels[rows][(images[rows] - image).square().sum(1).argsort()[:neighbours]].tolist()
            right += max(nearest, key=nearest.count) == int(label)  # the first of equal counts
        assert float(found[draw]) == pytest.approx(right / 300, abs=0.004)  # rounding may swap two neighbours
    assert 0.4 < float(found.mean()) < 0.9


def test_accuracies_that_no_number_of_images_gives_are_counted() -> None:
    assert count_inconsistent(["51.167", "51.000", "64.7"], 600) == 0  # 307, 306 and 388 of 600
    assert count_inconsistent(["63.033", "64.700"], 600) == 2
    assert count_inconsistent(["63.033", "64.140"], 6000) == 1  # 3,782 of 6,000, but 3,848.4
