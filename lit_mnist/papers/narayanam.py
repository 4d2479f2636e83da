"""Narayanam (MNIST): convolutional denoising autoencoder.

"Implementation of Autoencoder on MNIST Handwritten Digits".
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lit_mnist.papers.report.claims import Claim, at_least, at_most
from lit_mnist.papers.report.drawing import curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import one_per_class, predict, test_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {"training": "train/loss_epoch", "validation": "val/loss"}
QUICK = ("--trainer.max_epochs", "10", "--data.train_size", "10000")
EPOCHS = 10
"""Epochs that the paper's figure 10 shows."""


def _measure(runs: Runs) -> dict[str, float]:
    stage = runs["denoising"]
    losses = {name: [loss for _, loss in stage.history(metric)][:EPOCHS] for name, metric in CURVES.items()}
    values = {}
    for name, by_epoch in losses.items():
        # The share of epochs after which the loss is lower than before.
        values[f"falls_{name}"] = sum(b < a for a, b in pairwise(by_epoch)) / (len(by_epoch) - 1)
    train, val = losses["training"][-1], losses["validation"][-1]
    return values | {"gap": abs(val - train) / train, "val_loss": val, "mse": stage.test_metrics()["test/mse"]}


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    histories = {name: [runs["denoising"].history(metric) for runs in seeds] for name, metric in CURVES.items()}
    losses = curves(histories, "Narayanam, figure 10: losses of the denoising autoencoder", "cross-entropy")
    stage = seeds[0]["denoising"]
    split = one_per_class(test_split(stage.data()))
    rows = {"original": split.clean, "noisy": split.x, "reconstructed": predict(stage.model(), split.x)}
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
            Claim("training loss falls: share of the first 10 epochs", "falls_training", at_least(1.0),
                  percent=True),
            Claim("validation loss falls: share of the first 10 epochs", "falls_validation", at_least(0.75),
                  percent=True),
            Claim("the two stay close: relative distance in epoch 10", "gap", at_most(0.05), percent=True),
            Claim("validation loss", "val_loss", None),
            Claim("mean squared error of the test images", "mse", None),
        ),
        _draw,
        "10 epochs of 10,000 images instead of 25 of 54,000",
        {"quick": 6, "full": 60},
    ),
)  # fmt: skip
