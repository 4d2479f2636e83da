"""Pruning of hidden neurons by distinctiveness (Gedeon 1995; Zhang, sections 1 and 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_mnist.errors import UsageError
from lit_mnist.models.dense_autoencoder import DenseAutoencoder


@dataclass(frozen=True)
class Removal:
    """One step of pruning: a neuron that another stands for, or two that undo each other."""

    kind: Literal["merged", "dropped"]
    removed: tuple[int, ...]
    """The neurons that go, by their place in the unpruned code."""
    into: int | None
    """Where the outgoing weights of a merged neuron go."""
    angle: float
    """Between the two neurons' activation vectors, in degrees."""


def distinctiveness(model: DenseAutoencoder, images: Tensor) -> Tensor:
    """Angles in degrees (H, H) between the activation vectors of the code's H neurons over the images.

    A vector holds one neuron's activation for each image (N, C, H, W), less the 0.5 in the middle of a sigmoid's
    range, so that two neurons that do the same lie at 0° and two that do opposite things at 180°.

    Raises:
        UsageError: the code's activation is no sigmoid.

    """
    if model.hparams["hidden_activation"] != "sigmoid":
        raise UsageError(
            f"pruning by distinctiveness needs activations in [0, 1]: --model.hidden_activation is"
            f" {model.hparams['hidden_activation']}, not sigmoid"
        )
    with torch.inference_mode():
        vectors = model.encode(images).double() - 0.5
    vectors = nn.functional.normalize(vectors, dim=0)
    return (vectors.T @ vectors).clamp(-1, 1).acos().rad2deg()


def find_removals(angles: Tensor, parallel: float = 15.0, opposite: float = 165.0) -> list[Removal]:
    """The pairs that are not distinct, the closest first; a neuron that is gone is in no further pair.

    Args:
        angles: (H, H) in degrees.
        parallel: Below this angle the second neuron of a pair is merged into the first.
        opposite: Above this angle both drop out.

    """
    size = len(angles)
    first, second = torch.triu_indices(size, size, offset=1, device=angles.device)
    pairs = angles[first, second]
    order = torch.minimum(pairs, 180 - pairs).argsort(stable=True)
    left, removals = set(range(size)), []
    for i, j, angle in zip(first[order].tolist(), second[order].tolist(), pairs[order].tolist(), strict=True):
        if not {i, j} <= left:
            continue
        if angle < parallel:
            removals.append(Removal("merged", (j,), i, angle))
        elif angle > opposite and len(left) > 2:  # some code has to be left
            removals.append(Removal("dropped", (i, j), None, angle))
        else:
            continue
        left -= set(removals[-1].removed)
    return removals


def masked(model: DenseAutoencoder, removals: Sequence[Removal]) -> DenseAutoencoder:
    """A copy of `model`, of the same size, in which the removed neurons have no outgoing weights left."""
    copy = _like(model, model.hparams["hidden_sizes"])
    copy.load_state_dict(model.state_dict())
    outgoing = _outgoing(copy).weight.data
    for removal in removals:
        if removal.into is not None:
            outgoing[:, removal.into] += outgoing[:, removal.removed[0]]
        outgoing[:, list(removal.removed)] = 0
    return copy


def pruned(model: DenseAutoencoder, removals: Sequence[Removal]) -> DenseAutoencoder:
    """A smaller autoencoder that computes what `masked` does, without the removed neurons.

    The first n of a list of removals give the autoencoder after n steps.
    """
    source = masked(model, removals)
    gone = {neuron for removal in removals for neuron in removal.removed}
    *sizes, code = model.hparams["hidden_sizes"]
    kept = [neuron for neuron in range(code) if neuron not in gone]
    smaller = _like(model, [*sizes, len(kept)])
    into, out = _incoming(source), _outgoing(source)
    weights = source.state_dict()
    weights |= {
        f"encoder.{2 * len(sizes) + 1}.weight": into.weight[kept],
        f"encoder.{2 * len(sizes) + 1}.bias": into.bias[kept],
        "decoder.0.weight": out.weight[:, kept],
    }
    smaller.load_state_dict(weights)
    return smaller


def _incoming(model: DenseAutoencoder) -> nn.Linear:
    return [layer for layer in model.encoder.modules() if isinstance(layer, nn.Linear)][-1]


def _outgoing(model: DenseAutoencoder) -> nn.Linear:
    return next(layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear))


def _like(model: DenseAutoencoder, hidden_sizes: Sequence[int]) -> DenseAutoencoder:
    """An autoencoder of `model`'s hyperparameters and those sizes, where `model` is."""
    with torch.random.fork_rng(devices=[]):  # weights that are about to be replaced are to cost no random numbers
        like = type(model)(**{**model.hparams, "hidden_sizes": list(hidden_sizes)})
    return like.to(model.device, next(model.parameters()).dtype).train(model.training)
