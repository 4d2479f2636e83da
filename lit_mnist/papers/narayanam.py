"""Narayanam, "Implementation of Autoencoder on MNIST Handwritten Digits" (MNIST)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lit_mnist.papers.report.claims import AtLeast, AtMost, Claim
from lit_mnist.papers.report.drawing import curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import one_per_class, reconstruct, test_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {"training": "train/loss_epoch", "validation": "val/loss"}
QUICK = ("--trainer.max_epochs", "10", "--data.train_size", "10000")
FIRST = 10
"""Epochs that the paper draws."""


def _measure(runs: Runs) -> dict[str, float]:
    run = runs["denoising"]
    losses = {name: [loss for _, loss in run.history(metric)][:FIRST] for name, metric in CURVES.items()}
    values = {f"falls_{name}": _falls(points) for name, points in losses.items()}
    train, val = losses["training"][-1], losses["validation"][-1]
    return values | {"gap": abs(val - train) / train, "val_loss": val, "mse": run.tested()["test/mse"]}


def _falls(losses: Sequence[float]) -> float:
    """The share of epochs after which the loss is lower than before."""
    return sum(b < a for a, b in pairwise(losses)) / (len(losses) - 1)


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    histories = {name: [runs["denoising"].history(metric) for runs in seeds] for name, metric in CURVES.items()}
    losses = curves(histories, "Narayanam, figure 10: the denoising autoencoder's losses", "cross-entropy")
    run = seeds[0]["denoising"]
    split = one_per_class(test_split(run.data()))
    rows = {"original": split.clean, "noisy": split.x, "reconstructed": reconstruct(run.model(), split.x)}
    images = {name: row.numpy() for name, row in rows.items()}
    return {
        "figure_10": losses,
        "figure_9": image_rows(images, "Narayanam, figure 9: unseen digits, denoised"),
    }


EXPERIMENTS = (
    Experiment(
        "narayanam/denoising",
        "the convolutional denoising autoencoder (figures 9 and 10)",
        {"denoising": Stage("narayanam/denoising", quick=QUICK)},
        _measure,
        (
            Claim("training loss falls: share of epochs, of the first 10", "falls_training", AtLeast(1.0),
                  percent=True),
            Claim("validation loss falls: share of epochs, of the first 10", "falls_validation", AtLeast(0.75),
                  percent=True),
            Claim("the two stay close: distance in the last of these epochs", "gap", AtMost(0.05), percent=True),
            Claim("validation loss", "val_loss", None),
            Claim("mean squared error of the test images", "mse", None),
        ),
        _draw,
        "10 epochs of 10,000 images instead of 25 of 54,000",
        {"quick": 6, "full": 60},
    ),
)  # fmt: skip
