"""Pruning by distinctiveness: which neurons are removed, in which order, and what the smaller network computes."""

import pytest
import torch
from torch import Tensor

from lit_mnist.data.mini import load_mini
from lit_mnist.errors import UsageError
from lit_mnist.models import DenseAutoencoder
from lit_mnist.models.pruning import Removal, distinctiveness, find_removals, masked, pruned


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(load_mini()[0][:500]).unsqueeze(1).float() / 255


def similar_neurons_model(hidden_sizes: list[int]) -> DenseAutoencoder:
    """An autoencoder in whose code neuron 3 is almost equal to neuron 1, and neuron 5 is opposite to neuron 2."""
    torch.manual_seed(0)
    model = DenseAutoencoder(hidden_sizes=hidden_sizes, output_activation="identity")
    layer = model.encoder[-2]
    with torch.no_grad():
        layer.weight *= 8  # larger differences between images make neurons distinct
        layer.weight[3], layer.bias[3] = layer.weight[1] * 1.02, layer.bias[1]
        layer.weight[5], layer.bias[5] = -layer.weight[2], -layer.bias[2]
    return model


def test_angles_are_between_activations_minus_one_half(images: Tensor) -> None:
    model = similar_neurons_model([8])
    angles = distinctiveness(model, images)
    vectors = (model.encode(images) - 0.5).detach().numpy().astype(float).T
    for i, j in [(0, 1), (4, 6)]:
        cosine = vectors[i] @ vectors[j] / (vectors[i] @ vectors[i] * (vectors[j] @ vectors[j])) ** 0.5
        assert float(torch.cos(torch.deg2rad(angles[i, j]))) == pytest.approx(cosine, abs=1e-6)
    assert 0 < angles[1, 3] < 5 and angles[2, 5] > 179.9


@pytest.mark.parametrize("hidden_sizes", [[8], [16, 8]])
def test_the_pruned_network_is_smaller_and_equals_the_masked_one(hidden_sizes: list[int], images: Tensor) -> None:
    model = similar_neurons_model(hidden_sizes)
    before = model(images)
    removals = find_removals(distinctiveness(model, images))
    assert [(r.kind, r.removed, r.into) for r in removals[:2]] == [("dropped", (2, 5), None), ("merged", (3,), 1)]
    for n, size in [(0, 8), (1, 6), (2, 5)]:
        smaller, mask = pruned(model, removals[:n]), masked(model, removals[:n])
        assert smaller.hparams["hidden_sizes"] == [*hidden_sizes[:-1], size]
        assert smaller.encode(images).shape == (500, size)
        assert torch.allclose(smaller(images), mask(images), atol=1e-5)
        assert torch.allclose(mask(images), before, atol=1e-5) is (n == 0)
    assert torch.equal(model(images), before)


def test_merging_adds_the_outgoing_weights(images: Tensor) -> None:
    model = similar_neurons_model([8])
    with torch.no_grad():
        model.encoder[-2].weight[3] = model.encoder[-2].weight[1]  # now the two are equal
    merged = pruned(model, [Removal("merged", (3,), 1, 0.0)])
    assert torch.allclose(merged(images), model(images), atol=1e-5)
    chained = pruned(model, [Removal("merged", (3,), 1, 0.0), Removal("merged", (1,), 0, 0.0)])
    out = model.decoder[0].weight
    assert torch.allclose(chained.decoder[0].weight[:, 0], out[:, 0] + out[:, 1] + out[:, 3])


def test_the_most_similar_pairs_are_removed_first_and_no_neuron_twice() -> None:
    angles = torch.full((7, 7), 90.0)
    for i, j, angle in [(0, 1, 10.0), (1, 2, 4.0), (3, 4, 178.0), (4, 5, 3.0), (0, 5, 14.9), (0, 6, 15.0)]:
        angles[i, j] = angles[j, i] = angle
    steps = [(r.kind, r.removed, r.into, round(r.angle)) for r in find_removals(angles)]
    assert steps == [
        ("dropped", (3, 4), None, 178),
        ("merged", (2,), 1, 4),
        ("merged", (1,), 0, 10),
        ("merged", (5,), 0, 15),
    ]
    assert find_removals(angles, parallel=0, opposite=180) == []


def test_at_least_one_neuron_remains() -> None:
    assert len(find_removals(torch.full((5, 5), 1.0))) == 4
    assert [r.removed for r in find_removals(torch.full((4, 4), 179.0))] == [(0, 1)]


def test_other_activations_than_sigmoid_are_refused(images: Tensor) -> None:
    with pytest.raises(UsageError, match="activation is relu, not sigmoid"):
        distinctiveness(DenseAutoencoder(hidden_activation="relu"), images)


def test_pruning_keeps_the_random_state_and_the_models_mode_and_precision(images: Tensor) -> None:
    model = similar_neurons_model([8]).double().eval()
    state = torch.get_rng_state()
    smaller = pruned(model, [Removal("merged", (3,), 1, 0.0)])
    assert torch.equal(torch.get_rng_state(), state)
    assert not smaller.training and next(smaller.parameters()).dtype == torch.float64
