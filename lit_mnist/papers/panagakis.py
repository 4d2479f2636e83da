"""Panagakis, "Handwritten Digit Classification" (MNIST)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_mnist.papers.claims import AtLeast, AtMost, Claim
from lit_mnist.papers.drawing import curves
from lit_mnist.papers.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.probes import mean_picture_mse
from lit_mnist.papers.trained import reconstruct, test_split
from lit_mnist.tracking.figures import picture_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = ("--data.train_size", "2000", "--data.val_size", "2000")
ENCODER = Stage("panagakis/autoencoder", quick=(*FEW, "--trainer.max_epochs", "4"))
CLASSIFIER = Stage(
    "panagakis/classifier",
    quick=(*FEW, "--data.batch_size", "64", "--model.frozen_epochs", "5", "--trainer.max_epochs", "10"),
    source=ENCODER,
)
SHOWN = 9
"""Pictures of each row of figures 7 and 8."""
CONVERGED = 0.02


def _measure_autoencoder(runs: Runs) -> dict[str, float]:
    run = runs["autoencoder"]
    losses = [loss for _, loss in run.history("val/loss")]
    tail = losses[-max(2, len(losses) // 4) :]
    mse = run.tested()["test/mse"]
    explained = 1 - mse / run.once("mean_picture_mse", lambda: mean_picture_mse(run.data()))
    # What the last quarter of training still gains, of all that training gains.
    return {"mse": mse, "explained": explained, "gain": (tail[0] - min(tail)) / (losses[0] - min(losses) + 1e-12)}


def _draw_autoencoder(seeds: Sequence[Runs], summaries: Summaries) -> "Figure":
    lines = {"training": "train/loss_epoch", "validation": "val/loss"}
    histories = {name: [runs["autoencoder"].history(metric) for runs in seeds] for name, metric in lines.items()}
    return curves(histories, "Panagakis, figure 4: the autoencoder's losses", "mean squared error", log=True)


def _measure_classifier(runs: Runs) -> dict[str, float]:
    metrics = runs["classifier"].tested()
    epochs = runs["classifier"].history("train/acc_epoch")
    return {
        "acc": metrics["test/acc"],
        "loss": metrics["test/loss"],
        "train_acc": max(value for _, value in epochs),
        "val_acc": max(value for _, value in runs["classifier"].history("val/acc")),
    }


def _draw_classifier(seeds: Sequence[Runs], summaries: Summaries) -> "Figure":
    run = seeds[0]["classifier"]
    split = test_split(run.data())
    answers = reconstruct(run.model(), split.x).argmax(1)
    rows = {}
    for name, chosen in (("right", answers == split.y), ("wrong", answers != split.y)):
        said = "".join(str(int(answer)) for answer in answers[chosen][:SHOWN])
        rows[f"the first {name} ones: {said}"] = split.clean[chosen][:SHOWN].numpy()
    return picture_rows(rows, "Panagakis, figures 7 and 8: what the classifier gets right and wrong")


EXPERIMENTS = (
    Experiment(
        "panagakis/autoencoder",
        "the convolutional autoencoder with batch norm (figure 4)",
        {"autoencoder": ENCODER},
        _measure_autoencoder,
        (
            Claim("converges in about 40 epochs: the last quarter's share in the gain", "gain", AtMost(CONVERGED),
                  percent=True),
            Claim("variance explained", "explained", None, percent=True),
            Claim("mean squared error of the test pictures", "mse", None),
        ),
        _draw_autoencoder,
        "4 epochs of 2,000 pictures instead of 40 of 48,000",
        {"quick": 5, "full": 900},
    ),
    Experiment(
        "panagakis/classifier",
        "a classifier on that encoder, trained frozen and then whole (tables 1 and 2)",
        {"autoencoder": ENCODER, "classifier": CLASSIFIER},
        _measure_classifier,
        (
            Claim("test accuracy", "acc", AtLeast(0.9867), 0.9867, percent=True),
            Claim("test loss", "loss", AtMost(0.0903), 0.0903),
            Claim("training accuracy", "train_acc", AtLeast(0.999), 1.0, percent=True),
            Claim("validation accuracy, 98 to 99 %", "val_acc", AtLeast(0.98), 0.98, percent=True),
        ),
        _draw_classifier,
        "2,000 pictures instead of 48,000, in batches of 64 instead of 256; 5 epochs frozen and 5 whole instead of"
        " 100 and up to 100",
        {"quick": 9, "full": 2400},
    ),
)  # fmt: skip
