"""Narayanam (MNIST): convolutional denoising autoencoder.

"Implementation of Autoencoder on MNIST Handwritten Digits".
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lit_mnist.papers.report.claims import Claim, at_least, at_most
from lit_mnist.papers.report.drawing import training_curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import predict, test_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.report import one_per_class
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- narayanam/denoising: section 2, figures 9 and 10 ----
# The layers are those of figures 3 to 6 in the paper. Stated: noise 0.5 * N(0, 1), clipped; Adam, batch 64, 25
# epochs. Not stated: the learning rate, the slope of the leaky ReLU, which layers of the decoder use it. The paper
# validates on the test images; here a tenth of the training images is held out, so that the test images stay
# unseen.

CURVES = {"training": "train/loss_epoch", "validation": "val/loss"}
# Both bounds are this project's: the paper only says "steadily" about figure 9.
STEADILY = "a training loss that falls steadily rises in at most one of nine steps between epochs"
NOISY_STEADILY = "the validation loss, whose noise is larger than its last steps, may rise in three of nine"
QUICK = ("--trainer.max_epochs", "10", "--data.train_size", "5000")
EPOCHS = 10
"""Number of epochs that the paper discusses next to its figure 9."""


def _measure(runs: Runs) -> dict[str, float]:
    values = {}
    for variant, stage in runs.items():
        # The paper trains for 25 epochs and discusses the first 10.
        losses = {name: [loss for _, loss in stage.history(metric)][:EPOCHS] for name, metric in CURVES.items()}
        for name, by_epoch in losses.items():
            # The share of epochs after which the loss is lower than before.
            falls = sum(b < a for a, b in pairwise(by_epoch)) / (len(by_epoch) - 1)
            values[f"falls_{name}_{variant}"] = falls
        # Relative to the training loss, which depends on the noise.
        train, val = losses["training"][-1], losses["validation"][-1]
        values |= {f"gap_{variant}": abs(val - train) / train, f"val_loss_{variant}": val}
        values[f"mse_{variant}"] = stage.test_metrics()["test/mse"]
    return values


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    title = "Narayanam, figure 9: noise drawn once, and anew in each epoch"
    stage = seeds[0]["once"]
    # One image of each digit: original, with noise, and reconstructed.
    split = one_per_class([test_split(stage.data())])
    rows = {"original": split.clean, "noisy": split.x, "reconstructed": predict(stage.model(), split.x)}
    images = {name: row.numpy() for name, row in rows.items()}
    return {
        "figure_9": training_curves(seeds, ["once", "anew"], "loss", title, "cross-entropy"),
        "figure_10": image_rows(images, "Narayanam, figure 10: unseen digits, denoised"),
    }


EXPERIMENTS = (
    Experiment(
        "narayanam/denoising",
        "the convolutional denoising autoencoder (figures 9 and 10)",
        stages={
            # The paper corrupts the images once, before training. New noise in each epoch hides overfitting.
            "once": Stage("narayanam/denoising", ("--data.fixed_noise", "true"), QUICK),
            "anew": Stage("narayanam/denoising", quick=QUICK),
        },
        measure=_measure,
        claims=(
            # The text below figure 9.
            Claim("training loss falls steadily: share of the first 10 epochs in which it falls",
                  "falls_training_once", at_least(0.85), percent=True, margin=STEADILY),
            Claim("validation loss falls steadily: share of the first 10 epochs in which it falls",
                  "falls_validation_once", at_least(0.6), percent=True, margin=NOISY_STEADILY),
            Claim("the two stay close: relative distance in epoch 10", "gap_once", at_most(0.05), percent=True,
                  margin="lines that are 5 % apart can hardly be told apart in a figure like the paper's"),
            # Not in the paper: with new noise in each epoch, no image is repeated exactly, which keeps the losses
            # close.
            Claim("relative distance in epoch 10 with new noise in each epoch", "gap_anew", percent=True),
            Claim("validation loss in epoch 10", "val_loss_once"),
            Claim("validation loss in epoch 10 with new noise in each epoch", "val_loss_anew"),
            Claim("mean squared error of the test images", "mse_once"),
            Claim("mean squared error with new noise in each epoch", "mse_anew"),
        ),
        draw=_draw,
        cut="10 epochs of 5,000 images instead of 25 of 54,000",
        minutes={"quick": 6, "full": 120},
    ),
)  # fmt: skip
