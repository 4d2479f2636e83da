"""Pruning of a trained DenseAutoencoder's code by distinctiveness (Gedeon 1995; Zhang, sections 1 and 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_mnist.errors import UsageError
from lit_mnist.models.dense_autoencoder import DenseAutoencoder


@dataclass(frozen=True)
class Removal:
    """One step of pruning: one neuron is merged into a similar one, or two that cancel each other are dropped."""

    kind: Literal["merged", "dropped"]
    removed: tuple[int, ...]
    """Indices of the removed neurons in the unpruned code."""
    into: int | None
    """Index of the neuron that gets the outgoing weights of a merged one."""
    angle: float
    """Angle between the two neurons' activation vectors, in degrees."""


def distinctiveness(model: DenseAutoencoder, images: Tensor) -> Tensor:
    """Angles between the activation vectors of the code's neurons, in degrees.

    A neuron's vector holds its activation for each image, minus 0.5, the middle of a sigmoid's range: two neurons
    that do the same are at 0°, two that do the opposite at 180°.

    Args:
        model: Its code has K neurons.
        images: (N, C, H, W).

    Returns:
        Angles (K, K).

    Raises:
        UsageError: The code's activation is not sigmoid.

    """
    if model.hparams["hidden_activation"] != "sigmoid":
        raise UsageError(
            f"pruning by distinctiveness needs activations in [0, 1]: --model.hidden_activation is"
            f" {model.hparams['hidden_activation']}, not sigmoid"
        )
    with torch.inference_mode():
        # In float64: the arc cosine of a number near 1 loses half of the digits, which are the angles of interest.
        vectors = model.encode(images).double() - 0.5  # (N, K)
    vectors = nn.functional.normalize(vectors, dim=0)  # each neuron's vector to length 1
    # (K, N) @ (N, K) -> (K, K) cosines. Rounding makes some of them larger than 1, of which acos is NaN.
    return (vectors.T @ vectors).clamp(-1, 1).acos().rad2deg()


def find_removals(angles: Tensor, parallel: float = 15.0, opposite: float = 165.0) -> list[Removal]:
    """Find the pairs of neurons that are not distinct, the closest first; no neuron is removed twice.

    Args:
        angles: (K, K) in degrees.
        parallel: Below this angle the second neuron of a pair is merged into the first.
        opposite: Above this angle both neurons are dropped.

    """
    size = len(angles)
    # Each pair once, i < j: K (K - 1) / 2 pairs.
    first, second = torch.triu_indices(size, size, offset=1, device=angles.device)
    pairs = angles[first, second]
    # By distance from 0° or 180°; stable, so that equal angles come in the same order on every machine.
    order = torch.minimum(pairs, 180 - pairs).argsort(stable=True)
    left, removals = set(range(size)), []  # neurons that are still there
    for i, j, angle in zip(first[order].tolist(), second[order].tolist(), pairs[order].tolist(), strict=True):
        # A neuron that was merged into another no longer exists, so its other angles do not count.
        if not {i, j} <= left:
            continue
        if angle < parallel:
            removals.append(Removal("merged", (j,), i, angle))
        elif angle > opposite and len(left) > 2:  # at least one neuron must remain
            removals.append(Removal("dropped", (i, j), None, angle))
        else:
            continue
        left -= set(removals[-1].removed)
    return removals


def masked(model: DenseAutoencoder, removals: Sequence[Removal]) -> DenseAutoencoder:
    """A copy of `model` with the same layer sizes, in which the removed neurons' outgoing weights are 0."""
    copy = _resized(model, model.hparams["hidden_sizes"])
    copy.load_state_dict(model.state_dict())
    # (outputs, K): column k holds the outgoing weights of neuron k.
    outgoing = _outgoing(copy).weight.data
    for removal in removals:
        if removal.into is not None:
            # The remaining neuron takes over the outgoing weights of the merged one.
            outgoing[:, removal.into] += outgoing[:, removal.removed[0]]
        # Two opposite neurons are assumed to cancel each other, so no bias is adjusted for them.
        outgoing[:, list(removal.removed)] = 0
    return copy


def pruned(model: DenseAutoencoder, removals: Sequence[Removal]) -> DenseAutoencoder:
    """A smaller autoencoder without the removed neurons, which computes the same as `masked`.

    The first n of a list of removals give the autoencoder after n steps of pruning.
    """
    # `masked` has added the outgoing weights of merged neurons to the remaining ones.
    source = masked(model, removals)
    gone = {neuron for removal in removals for neuron in removal.removed}
    *sizes, code = model.hparams["hidden_sizes"]
    # Only two layers change size: the layer into the code loses rows, the layer out of it loses columns.
    kept = [neuron for neuron in range(code) if neuron not in gone]
    smaller = _resized(model, [*sizes, len(kept)])
    into = [layer for layer in source.encoder.modules() if isinstance(layer, nn.Linear)][-1]
    weights = source.state_dict()
    weights |= {
        # The encoder is Flatten, then pairs of Linear and activation: its last Linear has this number. The decoder
        # begins with the Linear that reads the code.
        f"encoder.{2 * len(sizes) + 1}.weight": into.weight[kept],
        f"encoder.{2 * len(sizes) + 1}.bias": into.bias[kept],
        "decoder.0.weight": _outgoing(source).weight[:, kept],
    }
    smaller.load_state_dict(weights)
    return smaller


def _outgoing(model: DenseAutoencoder) -> nn.Linear:
    """The layer that reads the code."""
    return next(layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear))


def _resized(model: DenseAutoencoder, hidden_sizes: Sequence[int]) -> DenseAutoencoder:
    """A new autoencoder with `model`'s hyperparameters except the sizes, on its device, in its dtype and mode."""
    with torch.random.fork_rng(devices=[]):  # keep the global generator: the initial weights are replaced anyway
        resized = type(model)(**{**model.hparams, "hidden_sizes": list(hidden_sizes)})
    return resized.to(model.device, next(model.parameters()).dtype).train(model.training)
