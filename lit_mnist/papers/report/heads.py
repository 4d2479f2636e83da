"""Many softmax layers on a frozen encoder, trained at once: one for each choice of the labelled images."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """H softmax layers on codes of D numbers, for C classes."""

    weights: Tensor
    """(H, D, C)."""
    biases: Tensor
    """(H, 1, C)."""

    @classmethod
    def initial(cls, count: int, width: int, classes: int, generator: torch.Generator) -> "Heads":
        """Random layers, distributed as those of torch.nn.Linear."""
        bound = width**-0.5
        values = torch.empty(count, width + 1, classes).uniform_(-bound, bound, generator=generator)
        return cls(values[:, :width], values[:, width:])

    def accuracy(self, codes: Tensor, labels: Tensor) -> Tensor:
        """The accuracy (H,) of each layer on the same codes (N, D) and labels (N,)."""
        pairs = zip(self.weights, self.biases, strict=True)
        return torch.stack([(codes @ w + b).argmax(1).eq(labels).float().mean() for w, b in pairs])


def train_heads(heads: Heads, codes: Tensor, labels: Tensor, lr: float, steps: int) -> tuple[Heads, Tensor]:
    """Train each layer by `steps` steps of full-batch gradient descent on its own images.

    A step changes a layer by a sum over its images, W -= lr/N · codesᵀ · error. So N numbers per class describe
    the total change, and a step needs only the inner products (N, N) of the codes. This is exact, and fast for few
    images: 2,000 steps of 100 layers on 50 codes of 100 numbers take 2 s on one core, while a `fit` of one layer
    takes 24 s.

    Args:
        heads: The layers before training.
        codes: (H, N, D) codes of the labelled images of each layer.
        labels: (H, N) their classes.
        lr: Learning rate.
        steps: Number of steps.

    Returns:
        The trained layers, and their cross-entropy (H,) on their own images.

    """
    count = codes.shape[1]
    target = torch.nn.functional.one_hot(labels, heads.biases.shape[2]).to(codes.dtype)
    start = torch.baddbmm(heads.biases, codes, heads.weights)
    products = codes @ codes.mT + 1  # the bias corresponds to an additional 1 in every code
    learned = torch.zeros_like(target)
    for _ in range(steps):
        error = torch.baddbmm(start, products, learned).softmax(2).sub_(target)
        learned.add_(error, alpha=-lr / count)
    trained = Heads(heads.weights + codes.mT @ learned, heads.biases + learned.sum(1, keepdim=True))
    logits = torch.baddbmm(trained.biases, codes, trained.weights)
    return trained, torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none").mean(1)
