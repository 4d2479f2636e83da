"""Panagakis, "Handwritten Digit Classification" (MNIST): the autoencoder and the classifier on its encoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lit_mnist.papers.panagakis_sweeps import ENCODER, SWEEPS
from lit_mnist.papers.report.claims import AtLeast, AtMost, Claim
from lit_mnist.papers.report.drawing import curves, marks
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.probes import mean_image_mse
from lit_mnist.papers.report.trained import Trained, reconstruct, test_split, train_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = (
    *("--data.batch_size", "128", "--model.frozen_epochs", "1", "--trainer.max_epochs", "2"),
    *("--model.lr_schedule", "cosine"),
)
CLASSIFIER = Stage("panagakis/classifier", quick=QUICK, source=ENCODER)
SHOWN = 9
"""Images of each row of figures 16 and 17."""
TRAINING_IMAGES = 5000
"""Of which the training accuracy is taken."""
CONVERGED = 0.02
SCORES = ("precision", "recall", "f1")


def _measure_autoencoder(runs: Runs) -> dict[str, float]:
    run = runs["autoencoder"]
    losses = [loss for _, loss in run.history("val/loss")]
    tail = losses[-max(2, len(losses) // 4) :]
    mse = run.tested()["test/mse"]
    explained = 1 - mse / run.once("mean_image_mse", lambda: mean_image_mse(run.data()))
    # What the last quarter of training still gains, of all that training gains.
    return {"mse": mse, "explained": explained, "gain": (tail[0] - min(tail)) / (losses[0] - min(losses) + 1e-12)}


def _draw_autoencoder(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    lines = {"training": "train/loss_epoch", "validation": "val/loss"}
    histories = {name: [runs["autoencoder"].history(metric) for runs in seeds] for name, metric in lines.items()}
    title = "Panagakis, figure 4: the autoencoder's losses"
    return {"figure_4": curves(histories, title, "mean squared error", log=True)}


def _measure_classifier(runs: Runs) -> dict[str, float]:
    run = runs["classifier"]
    metrics = run.tested()
    scores = run.kept("scores", lambda: _scores(run))
    values = {f"{name}_{label}": score for name in SCORES for label, score in enumerate(scores[name])}
    return values | {
        "acc": metrics["test/acc"],
        "loss": metrics["test/loss"],
        "wrong": round((1 - metrics["test/acc"]) * 10_000),
        "lowest_f1": min(scores["f1"]),
        "train_acc": run.once("train_acc", lambda: _training_accuracy(run)),
        "val_acc": max(value for _, value in run.history("val/acc")),
    }


def _scores(run: Trained) -> dict[str, list[float]]:
    """Precision, recall and F1 score of each class on the test images."""
    from sklearn.metrics import precision_recall_fscore_support

    split = test_split(run.data())
    answers = reconstruct(run.model(), split.x).argmax(1)
    found = precision_recall_fscore_support(split.y.numpy(), answers.numpy(), zero_division=0.0)
    return {name: np.asarray(scores).tolist() for name, scores in zip(SCORES, found[:3], strict=True)}


def _training_accuracy(run: Trained) -> float:
    """That of the finished network; the training's own is a mean over an epoch in which it still learns."""
    split = train_split(run.data())
    images, labels = split.x[:TRAINING_IMAGES], split.y[:TRAINING_IMAGES]
    return float((reconstruct(run.model(), images).argmax(1) == labels).float().mean())


def _draw_classifier(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    run = seeds[0]["classifier"]
    split = test_split(run.data())
    answers = reconstruct(run.model(), split.x).argmax(1)
    rows = {}
    for name, chosen in (("right", answers == split.y), ("wrong", answers != split.y)):
        said = "".join(str(int(answer)) for answer in answers[chosen][:SHOWN])
        rows[f"the first {name} ones: {said}"] = split.clean[chosen][:SHOWN].numpy()
    classes = {name: [summaries[f"{name}_{label}"] for label in range(10)] for name in SCORES}
    drawn = {
        "figures_16_17": image_rows(
            rows, "Panagakis, figures 16 and 17: what the classifier gets right and wrong"
        ),
        "table_2": marks(classes, range(10), "Panagakis, table 2: the classes", "class", "score, %"),
    }
    for number, kind in ((7, "loss"), (8, "acc")):
        lines = {"training": f"train/{kind}_epoch", "validation": f"val/{kind}"}
        histories = {
            name: [runs["classifier"].history(metric) for runs in seeds] for name, metric in lines.items()
        }
        title = f"Panagakis, figure {number}: the classifier, frozen and then whole"
        drawn[f"figure_{number}"] = curves(histories, title, "cross-entropy" if kind == "loss" else "accuracy")
    return drawn


EXPERIMENTS = (
    Experiment(
        "panagakis/autoencoder",
        "the convolutional autoencoder with batch norm (figure 4)",
        {"autoencoder": ENCODER},
        _measure_autoencoder,
        (
            Claim(
                "converges in about 40 epochs: the last quarter's share in the gain",
                "gain",
                AtMost(CONVERGED),
                percent=True,
            ),
            Claim("variance explained", "explained", None, percent=True),
            Claim("mean squared error of the test images", "mse", None),
        ),
        _draw_autoencoder,
        "10 epochs of 2,000 images instead of 40 of 48,000",
        {"quick": 5, "full": 300},
    ),
    Experiment(
        "panagakis/classifier",
        "a classifier on that encoder, trained frozen and then whole (tables 1 and 2)",
        {"autoencoder": ENCODER, "classifier": CLASSIFIER},
        _measure_classifier,
        (
            Claim("test accuracy", "acc", AtLeast(0.9867), 0.9867, percent=True),
            Claim("test loss", "loss", AtMost(0.0903), 0.0903),
            Claim("wrong ones of the 10,000 test images", "wrong", AtMost(133), 133),
            Claim("lowest F1 score of a class", "lowest_f1", AtLeast(0.975), 0.98, percent=True),
            Claim("training accuracy", "train_acc", AtLeast(0.999), 1.0, percent=True),
            Claim("validation accuracy, 98 to 99 %", "val_acc", AtLeast(0.98), 0.98, percent=True),
        ),
        _draw_classifier,
        "one epoch frozen and one whole instead of 100 and up to 100, in batches of 128 instead of 256, the"
        " learning rate falling to 0 meanwhile; the encoder learns from 10 epochs of 2,000 images",
        {"quick": 10, "full": 900},
    ),
    *SWEEPS,
)
