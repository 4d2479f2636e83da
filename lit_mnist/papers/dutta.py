"""Dutta (MNIST): backpropagation network, CNN, image compression.

"Applying CNN and Autoencoders on MNIST Dataset".
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from lit_mnist.models import FeatureClassifier
from lit_mnist.papers.report.claims import Claim, above, at_least, at_most, within
from lit_mnist.papers.report.drawing import training_curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import TrainedStage, predict, test_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.report import one_per_class
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# ---- Shared by several experiments ----

TEN_EPOCHS = ("--trainer.max_epochs", "10")
FOUR_EPOCHS = ("--trainer.max_epochs", "4", "--model.lr_schedule", "cosine")
AUTOENCODER = Stage("dutta/autoencoder", quick=("--trainer.max_epochs", "2"))
# Section III: 99.38 % at loss 0.0362 and 98.94 % at loss 0.0542, both "with Adam as optimizer".
UNATTRIBUTED = "the paper gives two results and does not say which network reached which"


def _measure_classifier(runs: Runs) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, stage in runs.items():
        metrics = stage.test_metrics()
        values |= {f"acc_{name}": metrics["test/acc"], f"loss_{name}": metrics["test/loss"]}
        values[f"parameters_{name}"] = stage.cached_metric("parameters", _count_parameters)
    return values


def _draw_classifier(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    # No curves for the variants that were only tried to come closer to the paper.
    shown = {name: stage for name, stage in seeds[0].items() if name in ("adam", "rmsprop", "cnn")}
    drawn = {}
    for figure, kind, ylabel in (("loss", "loss", "cross-entropy"), ("accuracy", "acc", "accuracy, %")):
        title = f"Dutta: {figure} of {', '.join(shown)}"
        drawn[figure] = training_curves(seeds, shown, kind, title, ylabel, log=kind == "loss")
    return drawn | {f"confusion_{name}": run.test_figures()["confusion_matrix"] for name, run in shown.items()}


def _count_parameters(stage: TrainedStage) -> float:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in stage.model().parameters() if parameter.requires_grad)


# ---- dutta/backprop_net: section 2.5 ----
# Stated: 784-300-10, sigmoid, cross-entropy, Adam, 60 epochs, learning rate 0.001, "decay = 1e-4", batch 32. Not
# stated: the kind of decay, the validation split.

# "decay = 1e-4" may be Keras' decay of the learning rate or a weight decay.
KERAS_DECAY = (
    *("--model.weight_decay", "0", "--model.lr_schedule", "inverse_time", "--model.lr_decay", "0.0001"),
)
# Section 2.3 rotates the CNN's images; with the same augmentation the network may come closer to the paper's
# result.
ROTATED = (*KERAS_DECAY, "--data.rotation", "10")


BACKPROP_EXPERIMENT = Experiment(
    "dutta/backprop_net",
    "784-300-10 with Adam and with RMSProp",
    stages={
        "adam": Stage("dutta/backprop_net", quick=TEN_EPOCHS),
        "rmsprop": Stage("dutta/backprop_net", ("--model.optimizer", "rmsprop"), TEN_EPOCHS),
        "keras": Stage("dutta/backprop_net", KERAS_DECAY, TEN_EPOCHS),
        # The variants above are below both of the paper's results; these were tried to come closer.
        "rotated": Stage("dutta/backprop_net", ROTATED, TEN_EPOCHS),
        # If the paper has no validation split, it trains on all 60,000 images; 59,000 leave enough for choosing
        # the checkpoint.
        "most": Stage("dutta/backprop_net", (*ROTATED, "--data.val_size", "1000"), TEN_EPOCHS),
    },
    measure=_measure_classifier,
    claims=(
        Claim("test accuracy with Adam, beside the lower of the paper's two", "acc_adam", at_least(0.9894),
              0.9894, percent=True, not_comparable=UNATTRIBUTED),
        Claim("test loss with Adam, beside that of the same result", "loss_adam", at_most(0.0542), 0.0542,
              not_comparable=UNATTRIBUTED),
        # Section 2.5: "we tried Adam and RMSProp and chose to use the Adam optimizer".
        Claim("Adam was chosen over RMSProp: test accuracy with Adam, above that with RMSProp", "acc_adam",
              above("acc_rmsprop"), percent=True),
        # Additional numbers: the effect of each change on the difference to 98.94 %.
        Claim("test accuracy with RMSProp", "acc_rmsprop", percent=True),
        Claim("test accuracy with Adam, inverse-time decay 1e-4 and no weight decay", "acc_keras",
              percent=True),
        Claim("the same, images rotated by up to 10°", "acc_rotated", percent=True),
        Claim("the same, 59,000 training images instead of 54,000", "acc_most", percent=True),
        Claim("trainable parameters", "parameters_adam", exact=True),
    ),
    draw=_draw_classifier,
    cut="10 epochs instead of 60",
    minutes={"quick": 10, "full": 90},
)  # fmt: skip


# ---- dutta/cnn: section 2.2 ----
# The layers are those of the summary in section 2.2. Not stated: the dropout rates, and the settings of the
# training, for which those of section 2.5 are used.


CNN_EXPERIMENT = Experiment(
    "dutta/cnn",
    "the convolutional classifier with batch norm, dropout and rotation",
    stages={"cnn": Stage("dutta/cnn", quick=FOUR_EPOCHS), "net": Stage("dutta/backprop_net", quick=TEN_EPOCHS)},
    measure=_measure_classifier,
    claims=(
        Claim("test accuracy, beside the higher of the paper's two", "acc_cnn", at_least(0.9938), 0.9938,
              percent=True, not_comparable=UNATTRIBUTED),
        Claim("test loss, beside that of the same result", "loss_cnn", at_most(0.0362), 0.0362,
              not_comparable=UNATTRIBUTED),
        # Abstract: "CNN can be used to enhance performance". Only the ordering can be tested.
        Claim("a CNN is better than the backpropagation network: test accuracy", "acc_cnn", above("acc_net"),
              percent=True),
        # The last line of the summary in section 2.2. It confirms that the layers are those of the paper.
        Claim("688,106 trainable parameters", "parameters_cnn", within(688_106, 0), 688_106, exact=True),
    ),
    draw=_draw_classifier,
    cut="4 epochs instead of 60, with a cosine schedule to learning rate 0; 10 of the network's 60",
    minutes={"quick": 8, "full": 112},
)  # fmt: skip


# ---- dutta/compression: abstract ----
# The abstract mentions the compression of images by both kinds of autoencoder, but the paper states neither layers
# nor results. Here both have a code of 98 numbers, so that they can be compared.


def _measure_compression(runs: Runs) -> dict[str, float]:
    values = {}
    for name, stage in runs.items():
        values[f"mse_{name}"] = stage.test_metrics()["test/mse"]
        values[f"parameters_{name}"] = stage.cached_metric("parameters", _count_parameters)
        values[f"seconds_{name}"] = stage.cached_metric("seconds_per_1000", _seconds_per_1000_images)
    return values


def _seconds_per_1000_images(stage: TrainedStage) -> float:
    """The fastest of five passes over 1,000 test images, since the machine may be busy."""
    model, images = stage.model(), test_split(stage.data(), 1000).x
    took = []
    for _ in range(5):
        start = time.perf_counter()
        predict(model, images)
        took.append(time.perf_counter() - start)
    return min(took)


def _draw_compression(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    runs = seeds[0]
    split = one_per_class([test_split(runs["dense"].data())])
    rows = {"original": split.clean.numpy()}
    rows |= {name: predict(stage.model(), split.x).numpy() for name, stage in runs.items()}
    return {"images": image_rows(rows, "Dutta: unseen digits through 98 numbers, dense and convolutional")}


COMPRESSION_EXPERIMENT = Experiment(
    "dutta/compression",
    "images through 98 numbers: a dense and a convolutional autoencoder",
    stages={
        "dense": AUTOENCODER,
        "convolutional": Stage("dutta/conv_autoencoder", quick=("--trainer.max_epochs", "2")),
    },
    measure=_measure_compression,
    claims=(
        Claim("a convolutional autoencoder is smaller than a dense one: parameters of the dense one",
              "parameters_dense", above("parameters_convolutional"), exact=True,
              not_comparable="the paper gives the layers of neither"),
        Claim("parameters of the convolutional one", "parameters_convolutional", exact=True),
        Claim("test MSE of the dense one", "mse_dense"),
        Claim("test MSE of the convolutional one", "mse_convolutional"),
        Claim("seconds for 1,000 images, dense", "seconds_dense"),
        Claim("seconds for 1,000 images, convolutional", "seconds_convolutional"),
    ),
    draw=_draw_compression,
    cut="2 epochs instead of 10",
    minutes={"quick": 3, "full": 12},
)  # fmt: skip


# ---- dutta/code_classifier: abstract ----
# "The performance is improved by increasing the speed of the neural network and decreasing the network size. The
# accuracy rate cannot be guaranteed." Neither a network nor numbers are stated; 98-300-10 on the code is assumed.


def _measure_code_classifier(runs: Runs) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in ("code", "images"):
        metrics = runs[name].test_metrics()
        values |= {f"acc_{name}": metrics["test/acc"], f"loss_{name}": metrics["test/loss"]}
        # Without the frozen encoder's parameters, since the images are compressed only once.
        values[f"parameters_{name}"] = runs[name].cached_metric("parameters", _count_parameters)
        values[f"seconds_{name}"] = runs[name].cached_metric("seconds_of_layers", _seconds_of_layers)
    return values


def _seconds_of_layers(stage: TrainedStage) -> float:
    """The fastest of five passes of all test images, or their codes, through the dense layers alone."""
    model, images = stage.model(), test_split(stage.data()).x
    # The codes are computed before the clock starts: the claim is about images that are stored compressed.
    if isinstance(model, FeatureClassifier):
        layers: nn.Module = model.head
        with torch.inference_mode():
            inputs = torch.cat([model.encoder(batch) for batch in torch.split(images, 1000)])
    else:
        layers, inputs = model, images
    took = []
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            for batch in torch.split(inputs, 1000):
                layers(batch)
            took.append(time.perf_counter() - start)
    return min(took)


def _draw_code_classifier(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    title = "Dutta: a classifier on 98 numbers, and one on 784 pixels"
    return {"accuracy": training_curves(seeds, ["code", "images"], "acc", title, "accuracy, %")}


CODE_EXPERIMENT = Experiment(
    "dutta/code_classifier",
    "a classifier on the compressed code, 98-300-10, and one on the images, 784-300-10 (abstract)",
    stages={
        "autoencoder": AUTOENCODER,
        "code": Stage("dutta/code_classifier", quick=TEN_EPOCHS, source=AUTOENCODER),
        "images": Stage("dutta/backprop_net", quick=TEN_EPOCHS),
    },
    measure=_measure_code_classifier,
    claims=(
        # Two parts of the abstract's sentence, size and speed. The encoder's training time is not included. Of the
        # third part, accuracy, the abstract says only that it cannot be guaranteed.
        Claim("the classifier on the code, its encoder not counted, is smaller: parameters of the one on the"
              " images", "parameters_images", above("parameters_code"), exact=True),
        Claim("it is faster, on images that are encoded already: seconds of the one on the images for 10,000",
              "seconds_images", above("seconds_code")),
        Claim("test accuracy of the one on the code", "acc_code", percent=True),
        Claim("test accuracy of the one on the images", "acc_images", percent=True),
        Claim("parameters of the one on the code, without the encoder's 76,930", "parameters_code",
              exact=True),
        Claim("seconds of the one on the code for 10,000 codes", "seconds_code"),
    ),
    draw=_draw_code_classifier,
    cut="2 epochs of the autoencoder instead of 10, 10 of the classifiers instead of 60",
    minutes={"quick": 8, "full": 45},
)  # fmt: skip


EXPERIMENTS = (BACKPROP_EXPERIMENT, CNN_EXPERIMENT, COMPRESSION_EXPERIMENT, CODE_EXPERIMENT)
