"""Dutta, "Applying CNN and Autoencoders on MNIST Dataset" (MNIST)."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_mnist.papers.report.claims import Above, AtLeast, AtMost, Claim, Within
from lit_mnist.papers.report.drawing import curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import Trained, one_per_class, reconstruct, test_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEN_EPOCHS = ("--trainer.max_epochs", "10")
FOUR_EPOCHS = ("--trainer.max_epochs", "4", "--model.lr_schedule", "cosine")
SPEED_IMAGES = 1000


def _measure_classifier(runs: Runs) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, run in runs.items():
        metrics = run.tested()
        values |= {f"acc_{name}": metrics["test/acc"], f"loss_{name}": metrics["test/loss"]}
        values[f"parameters_{name}"] = run.once("parameters", lambda run=run: _parameters(run))  # type: ignore[misc]
    return values


def _draw_classifier(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    histories = {
        f"{name}, {label}": [runs[name].history(metric) for runs in seeds]
        for name in seeds[0]
        for label, metric in (("training", "train/loss_epoch"), ("validation", "val/loss"))
    }
    drawn = {"loss": curves(histories, f"Dutta: loss of {', '.join(seeds[0])}", "cross-entropy", log=True)}
    histories = {
        f"{name}, {label}": [runs[name].history(metric) for runs in seeds]
        for name in seeds[0]
        for label, metric in (("training", "train/acc_epoch"), ("validation", "val/acc"))
    }
    drawn["accuracy"] = curves(histories, f"Dutta: accuracy of {', '.join(seeds[0])}", "accuracy")
    return drawn | {f"confusion_{name}": run.test_figures()["confusion_matrix"] for name, run in seeds[0].items()}


def _measure_compression(runs: Runs) -> dict[str, float]:
    values = {}
    for name, run in runs.items():
        values[f"mse_{name}"] = run.tested()["test/mse"]
        values[f"parameters_{name}"] = run.once("parameters", lambda run=run: _parameters(run))  # type: ignore[misc]
        values[f"seconds_{name}"] = run.once("seconds_per_1000", lambda run=run: _speed(run))  # type: ignore[misc]
    return values


def _draw_compression(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    runs = seeds[0]
    split = one_per_class(test_split(runs["dense"].data()))
    rows = {"original": split.clean.numpy()}
    rows |= {name: reconstruct(run.model(), split.x).numpy() for name, run in runs.items()}
    return {"images": image_rows(rows, "Dutta: unseen digits through 98 numbers, dense and convolutional")}


def _parameters(run: Trained) -> float:
    return sum(parameter.numel() for parameter in run.model().parameters() if parameter.requires_grad)


def _speed(run: Trained) -> float:
    """The fastest of five passes over 1,000 test images, in seconds."""
    model, images = run.model(), test_split(run.data(), SPEED_IMAGES).x
    took = []
    for _ in range(5):
        start = time.perf_counter()
        reconstruct(model, images)
        took.append(time.perf_counter() - start)
    return min(took)


EXPERIMENTS = (
    Experiment(
        "dutta/backprop_net",
        "784-300-10 with Adam and with RMSProp",
        {
            "adam": Stage("dutta/backprop_net", quick=TEN_EPOCHS),
            "rmsprop": Stage("dutta/backprop_net", ("--model.optimizer", "rmsprop"), TEN_EPOCHS),
        },
        _measure_classifier,
        (
            Claim("98.94 %, the lower of two results of which no network is named", "acc_adam", AtLeast(0.9894),
                  0.9894, percent=True),
            Claim("loss 0.0542, of the same result", "loss_adam", AtMost(0.0542), 0.0542),
            Claim("RMSProp", "acc_rmsprop", None, percent=True),
            Claim("trainable parameters", "parameters_adam", None),
        ),
        _draw_classifier,
        "10 epochs instead of 60",
        {"quick": 6, "full": 35},
    ),
    Experiment(
        "dutta/cnn",
        "the convolutional classifier with batch norm, dropout and rotation",
        {"cnn": Stage("dutta/cnn", quick=FOUR_EPOCHS)},
        _measure_classifier,
        (
            Claim("99.38 %, the higher of two results of which no network is named", "acc_cnn", AtLeast(0.9938),
                  0.9938, percent=True),
            Claim("loss 0.0362, of the same result", "loss_cnn", AtMost(0.0362), 0.0362),
            Claim("688,106 trainable parameters", "parameters_cnn", Within(688_106, 0), 688_106),
        ),
        _draw_classifier,
        "4 epochs instead of 60, the learning rate falling to 0 meanwhile",
        {"quick": 5, "full": 95},
    ),
    Experiment(
        "dutta/compression",
        "images through 98 numbers: a dense and a convolutional autoencoder",
        {
            "dense": Stage("dutta/autoencoder", quick=("--trainer.max_epochs", "2")),
            "convolutional": Stage("dutta/conv_autoencoder", quick=("--trainer.max_epochs", "2")),
        },
        _measure_compression,
        (
            Claim("the convolutional one is smaller: parameters, less than the dense one's", "parameters_dense",
                  Above(("parameters_convolutional",))),
            Claim("parameters of the convolutional one", "parameters_convolutional", None),
            Claim("test MSE of the dense one", "mse_dense", None),
            Claim("test MSE of the convolutional one", "mse_convolutional", None),
            Claim("seconds for 1,000 images, dense", "seconds_dense", None),
            Claim("seconds for 1,000 images, convolutional", "seconds_convolutional", None),
        ),
        _draw_compression,
        "2 epochs instead of 10",
        {"quick": 3, "full": 12},
    ),
)  # fmt: skip
