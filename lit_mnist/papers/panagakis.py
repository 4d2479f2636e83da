"""Panagakis (MNIST): convolutional autoencoder, classifier on its encoder, three sweeps of the classifier.

"Handwritten Digit Classification".
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lit_mnist.papers.report.claims import Claim, above, at_least, at_most, below, descending
from lit_mnist.papers.report.drawing import bars, marks, training_curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import TrainedStage, mean_image_mse, predict, test_split, train_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# ---- Shared by several experiments ----

# Validation on all 12,000 images would take most of the quick preset's time.
FEW_VALIDATED = ("--trainer.limit_val_batches", "2")
# Section 3.1.2. The classifiers below start from its best checkpoint.
ENCODER = Stage(
    "panagakis/autoencoder", quick=("--data.train_size", "2000", "--trainer.max_epochs", "10", *FEW_VALIDATED)
)
# Section 3.2.3 with the paper's best settings: batch size 256, a dense layer of 128, 100 epochs frozen.
CLASSIFIER = Stage(
    "panagakis/classifier",
    quick=(
        *("--data.batch_size", "128", "--model.frozen_epochs", "1", "--trainer.max_epochs", "2"),
        *("--model.lr_schedule", "cosine"),
    ),
    source=ENCODER,
)
# On two cores three seeds of the autoencoder take 5 hours and three of the classifier 10 more (`minutes` below).
HOURS = 3
"""Minimum number of seeds for a verdict, since a training takes hours."""


# ---- panagakis/autoencoder: section 3.1, figure 4 ----
# Stated: batch 64, 40 epochs, 80–20 split, 3×3 convolutions with batch norm. Not stated: the loss, the optimiser
# and its learning rate, how the decoder reverses the pooling.

CONVERGED = 0.02
"""Maximum share of the total decrease of the loss in the last quarter of a converged training."""


def _measure_autoencoder(runs: Runs) -> dict[str, float]:
    stage = runs["autoencoder"]
    losses = [loss for _, loss in stage.history("val/loss")]
    # The paper concludes convergence from the flat end of figure 4; here the flatness is measured.
    tail = losses[-max(2, len(losses) // 4) :]
    mse = stage.test_metrics()["test/mse"]
    return {
        "mse": mse,
        "explained": 1 - mse / stage.cached_metric("mean_image_mse", mean_image_mse),
        # The gain of the last quarter as a share of the whole gain.
        "gain": (tail[0] - min(tail)) / (losses[0] - min(losses) + 1e-12),
    }


def _draw_autoencoder(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    title = "Panagakis, figure 4: losses of the autoencoder"
    return {"figure_4": training_curves(seeds, ["autoencoder"], "loss", title, "mean squared error", log=True)}


AUTOENCODER_EXPERIMENT = Experiment(
    "panagakis/autoencoder",
    "the convolutional autoencoder with batch norm (figure 4)",
    stages={"autoencoder": ENCODER},
    measure=_measure_autoencoder,
    claims=(
        Claim("converges in about 40 epochs: share of the gain in the last quarter", "gain",
              at_most(CONVERGED), percent=True,
              margin="a last quarter that gains at most 2 % of the whole gain looks flat in figure 4"),
        Claim("variance explained", "explained", percent=True),
        Claim("mean squared error of the test images", "mse"),
    ),
    draw=_draw_autoencoder,
    cut="10 epochs of 2,000 images instead of 40 of 48,000",
    minutes={"quick": 5, "full": 300},
    fewest_seeds=HOURS,
)  # fmt: skip


# ---- panagakis/classifier: sections 3.2.3 and 4.2 to 4.5, tables 1 and 2, figures 7, 8, 16, 17 ----
# 100 epochs with the encoder frozen, then the whole network until early stopping, 21 epochs later. Not stated: the
# optimiser and its learning rate, the metric and the patience of early stopping.

TEST_NOISE = "20 of 10,000 test images, 0.2 points, are two standard deviations of their choice"
SHOWN = 9
"""Images in each row of figures 16 and 17."""
TRAINING_IMAGES = 5000
"""Number of images on which the training accuracy is measured."""
TABLE_2 = (0.99, 1.00, 0.98, 0.99, 0.99, 0.99, 0.99, 0.98, 0.98, 0.98)
"""The paper's F1 scores by class."""
SCORES = ("precision", "recall", "f1")


def _measure_classifier(runs: Runs) -> dict[str, float]:
    stage = runs["classifier"]
    metrics = stage.test_metrics()
    scores = stage.cached_json("scores", _class_scores)
    values = {f"{name}_{label}": score for name in SCORES for label, score in enumerate(scores[name])}
    return values | {
        "acc": metrics["test/acc"],
        "loss": metrics["test/loss"],
        # One number for all ten classes: the largest difference below the paper.
        "f1_below_paper": max(theirs - ours for theirs, ours in zip(TABLE_2, scores["f1"], strict=True)),
        "train_acc": stage.cached_metric("train_acc", _training_accuracy),
        "val_acc": max(value for _, value in stage.history("val/acc")),
        # Validation losses are logged once per epoch, so their number is the number of epochs.
        "second_phase": len(stage.history("val/loss")) - stage.rebuild().model.hparams["frozen_epochs"],
    }


def _class_scores(stage: TrainedStage) -> dict[str, list[float]]:
    """Precision, recall and F1 score of each class on the test images."""
    from sklearn.metrics import precision_recall_fscore_support

    split = test_split(stage.data())
    answers = predict(stage.model(), split.x).argmax(1)
    found = precision_recall_fscore_support(split.y.numpy(), answers.numpy(), zero_division=0.0)
    return {name: np.asarray(scores).tolist() for name, scores in zip(SCORES, found[:3], strict=True)}


def _training_accuracy(stage: TrainedStage) -> float:
    """Accuracy of the trained network on training images; the logged one is a mean over the steps of an epoch."""
    split = train_split(stage.data())
    images, labels = split.x[:TRAINING_IMAGES], split.y[:TRAINING_IMAGES]
    return float((predict(stage.model(), images).argmax(1) == labels).float().mean())


def _draw_classifier(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    stage = seeds[0]["classifier"]
    split = test_split(stage.data())
    answers = predict(stage.model(), split.x).argmax(1)
    # Figures 16 and 17 show the first nine images of each kind; the label of a row has the predicted classes.
    rows = {}
    for name, chosen in (("right", answers == split.y), ("wrong", answers != split.y)):
        said = "".join(str(int(answer)) for answer in answers[chosen][:SHOWN])
        rows[f"first {name} answers: {said}"] = split.clean[chosen][:SHOWN].numpy()
    classes = {name: [summaries[f"{name}_{label}"] for label in range(10)] for name in SCORES}
    title = "Panagakis, figures 16 and 17: right and wrong answers of the classifier"
    drawn = {
        "figures_16_17": image_rows(rows, title),
        "table_2": marks(classes, range(10), "Panagakis, table 2: the classes", "class", "score, %"),
    }
    for number, kind, ylabel in ((7, "loss", "cross-entropy"), (8, "acc", "accuracy, %")):
        title = f"Panagakis, figure {number}: the classifier, encoder frozen and then trained"
        drawn[f"figure_{number}"] = training_curves(seeds, ["classifier"], kind, title, ylabel)
    return drawn


CLASSIFIER_EXPERIMENT = Experiment(
    "panagakis/classifier",
    "a classifier on that encoder, trained with the encoder frozen and then whole (tables 1 and 2)",
    stages={"autoencoder": ENCODER, "classifier": CLASSIFIER},
    measure=_measure_classifier,
    claims=(
        # Tables 1 and 2; section 3.2.3 for training and validation accuracy and the end of training.
        Claim("test accuracy reaches the paper's, 133 of 10,000 test images wrong", "acc", at_least(0.9847),
              0.9867, percent=True, margin=TEST_NOISE),
        Claim("test loss is as low as the paper's", "loss", at_most(0.0903), 0.0903),
        Claim("F1 scores of table 2: the class that is furthest below the paper's", "f1_below_paper",
              at_most(0.01), percent=True,
              margin="one point: table 2 is rounded to half a point, and a class has about 1,000 test images"),
        Claim("training accuracy is 100 %", "train_acc", at_least(0.995), 1.0, percent=True,
              margin="the paper gives whole percent: 99.5 and more is its 100"),
        Claim("validation accuracy reaches 98 to 99 %", "val_acc", at_least(0.98), 0.98, percent=True),
        Claim("early stopping ends the second phase before its 100 epochs: number of epochs", "second_phase",
              at_most(99), 21,
              margin="the paper does not give the patience, which is part of its 21 epochs: here it is 10"),
    ),
    draw=_draw_classifier,
    cut="one epoch frozen and one whole instead of 100 and up to 100, in batches of 128 instead of 256, with a"
    " cosine schedule to learning rate 0; the encoder learns from 10 epochs of 2,000 images",
    minutes={"quick": 10, "full": 900},
    fewest_seeds=HOURS,
)  # fmt: skip


# ---- panagakis/controls: section 3.2.3 ----
# The paper gives a reason for training in two phases, "to help the classifier learn gradually", but no comparison
# with training without them or without the autoencoder's weights. These controls are this project's.

CONTROLS = {"classifier": "paper", "random": "random encoder", "whole": "no frozen phase"}


def _measure_controls(runs: Runs) -> dict[str, float]:
    return {f"acc_{name}": runs[name].test_metrics()["test/acc"] for name in CONTROLS}


def _draw_controls(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    numbers = {label: summaries[f"acc_{name}"] for name, label in CONTROLS.items()}
    return {"accuracy": bars(numbers, "Panagakis: what the two phases contribute", "test accuracy, %")}


CONTROLS_EXPERIMENT = Experiment(
    "panagakis/controls",
    "what the autoencoder and the frozen phase contribute to the classifier (section 3.2.3)",
    stages={
        "autoencoder": ENCODER,
        "classifier": CLASSIFIER,
        "random": Stage("panagakis/classifier", quick=CLASSIFIER.quick),
        "whole": Stage(
            "panagakis/classifier",
            ("--model.frozen_epochs", "0", "--trainer.max_epochs", "100"),
            (*CLASSIFIER.quick, "--model.frozen_epochs", "0", "--trainer.max_epochs", "1"),
            source=ENCODER,
        ),
    },
    measure=_measure_controls,
    claims=(
        # Paired by seed: the three trainings of a seed share the split and the order of the images.
        Claim("training in two phases helps: test accuracy, above that without a frozen phase",
              "acc_classifier", above("acc_whole"), percent=True),
        Claim("the autoencoder's encoder helps: test accuracy, above that with a random one",
              "acc_classifier", above("acc_random"), percent=True),
        Claim("test accuracy without a frozen phase", "acc_whole", percent=True),
        Claim("test accuracy with a random encoder", "acc_random", percent=True),
    ),
    draw=_draw_controls,
    cut="as panagakis/classifier; without a frozen phase one epoch",
    minutes={"quick": 10, "full": 2100},
    fewest_seeds=HOURS,
)  # fmt: skip


# ---- The three sweeps of section 4.1 ----
# The values that the paper tried are only in its figures and not in the text. Here each sweep has the paper's
# choice and its neighbours. All use the same encoder, so that only the varied setting differs.

# The sweeps of figures 10 to 15, and how the quick preset shortens them.
IMAGES = ("--data.train_size", "4000", *FEW_VALIDATED)
EPOCHS = ("--model.frozen_epochs", "2", "--trainer.max_epochs", "4")
SMALL_BATCH = ("--data.batch_size", "64")
CUT = "4,000 images instead of 48,000, {}2 epochs frozen and 2 whole instead of 100 and up to 100"


def _sweep_stage(flags: tuple[str, ...], quick: tuple[str, ...]) -> Stage:
    return Stage("panagakis/classifier", flags, (*IMAGES, *quick), source=ENCODER)


def _measure_sweep(runs: Runs) -> dict[str, float]:
    values = {}
    for name, stage in runs.items():
        if name == "autoencoder":
            continue
        # Figures 10, 12 and 14 show losses, and 11, 13 and 15 accuracies; the best epoch counts, as with early
        # stopping.
        values[f"loss_{name}"] = min(loss for _, loss in stage.history("val/loss"))
        values[f"acc_{name}"] = max(share for _, share in stage.history("val/acc"))
        values[f"train_loss_{name}"] = stage.history("train/loss_epoch")[-1][1]
        # The shorter of the last two epochs, which train the encoder too; the minimum, since the machine may be
        # busy.
        ends = stage.timestamps("train/loss_epoch")
        values[f"seconds_{name}"] = min(after - before for before, after in list(pairwise(ends))[-2:])
    return values


def _draw_sweep(what: str, first: int) -> Callable[[Sequence[Runs], Summaries], dict[str, "Figure"]]:
    """Returns the `draw` of a sweep: loss and accuracy by variant, the paper's figures `first` and `first` + 1."""

    def draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
        names = [name for name in seeds[0] if name != "autoencoder"]
        quantities = (
            ("loss", "cross-entropy", {"training": "train_loss", "validation": "loss"}),
            ("accuracy", "validation accuracy, %", {"validation": "acc"}),
        )
        drawn = {}
        for number, (quantity, ylabel, lines) in enumerate(quantities, first):
            series = {label: [summaries[f"{key}_{name}"] for name in names] for label, key in lines.items()}
            title = f"Panagakis, figure {number}: {quantity} by {what}"
            drawn[f"figure_{number}"] = marks(series, names, title, what, ylabel)
        return drawn

    return draw


# ---- panagakis/layer_size: section 4.1, figures 10 and 11 ----

LAYERS = (32, 64, 128, 256)


def _measure_layers(runs: Runs) -> dict[str, float]:
    values = _measure_sweep(runs)
    values["acc_64_128"] = (values["acc_64"] + values["acc_128"]) / 2
    values["lowest_train_acc"] = min(runs[str(size)].history("train/acc_epoch")[-1][1] for size in LAYERS)
    return values


LAYERS_EXPERIMENT = Experiment(
    "panagakis/layer_size",
    "the classifier by the size of its dense layer (figures 10 and 11)",
    stages={
        "autoencoder": ENCODER,
        **{
            str(size): _sweep_stage(("--model.hidden_sizes", f"[{size}]"), (*EPOCHS, *SMALL_BATCH))
            for size in LAYERS
        },
    },
    measure=_measure_layers,
    claims=(
        # Section 4.1 gives orderings only, no numbers.
        Claim("the smallest validation loss is that of 128", "loss_128",
              below("loss_32", "loss_64", "loss_256")),
        # The mean instead of the better of the two, which would be higher by chance even if they were equal.
        Claim("the highest validation accuracies are those of 64 and 128: their mean, above 32 and 256",
              "acc_64_128", above("acc_32", "acc_256"), percent=True),
        # "Almost perfect results for every size we experimented with".
        Claim("training is almost perfect at every size: the lowest training accuracy", "lowest_train_acc",
              at_least(0.99), percent=True, margin="almost perfect: at most one image in a hundred is wrong"),
        Claim("validation loss with 64", "loss_64"),
        Claim("validation loss with 256", "loss_256"),
    ),
    draw=_draw_sweep("size of the dense layer", 10),
    cut=CUT.format("batches of 64 instead of 256, "),
    minutes={"quick": 8, "full": 2400},
    fewest_seeds=HOURS,
)  # fmt: skip


# ---- panagakis/epochs: section 4.1, figures 12 and 13 ----
# "n + n": as many epochs with the frozen encoder as with the whole network, up to 100 + 100.

DIVISORS = (4, 2, 1)
"""Divisors of the paper's number of epochs, or of 4 in the quick preset."""


def _epochs(frozen: int) -> tuple[str, ...]:
    """Flags for `frozen` epochs with a frozen encoder and as many with the whole network."""
    return ("--model.frozen_epochs", str(frozen), "--trainer.max_epochs", str(2 * frozen))


def _measure_epochs(runs: Runs) -> dict[str, float]:
    names = [name for name in runs if name != "autoencoder"]
    return _measure_sweep(runs) | {f"test_acc_{name}": runs[name].test_metrics()["test/acc"] for name in names}


EPOCHS_EXPERIMENT = Experiment(
    "panagakis/epochs",
    "the classifier by its epochs, as many frozen as whole (figures 12 and 13)",
    stages={
        "autoencoder": ENCODER,
        **{
            f"1/{divisor}": _sweep_stage(_epochs(100 // divisor), (*_epochs(4 // divisor), *SMALL_BATCH))
            for divisor in DIVISORS
        },
    },
    measure=_measure_epochs,
    claims=(
        # The text below figure 13: test accuracy increases with the epochs, "to an extent".
        Claim("more epochs help to an extent: test accuracy with all of them, above that with a quarter",
              "test_acc_1/1", above("test_acc_1/4"), percent=True),
        # The text below figure 13 states this for figure 12. It is unexpected, so both longer trainings are
        # compared.
        Claim("the training loss is lowest with few epochs: with a quarter, below that with half and with all",
              "train_loss_1/4", below("train_loss_1/2", "train_loss_1/1")),
        Claim("test accuracy with half of them", "test_acc_1/2", percent=True),
        Claim("test accuracy with a quarter of them", "test_acc_1/4", percent=True),
    ),
    draw=_draw_sweep("share of the epochs", 12),
    cut="4,000 images instead of 48,000, batches of 64 instead of 256; 4 + 4 epochs and their half and quarter"
    " instead of 100 + 100, 50 + 50 and 25 + 25",
    minutes={"quick": 7, "full": 1200},
    fewest_seeds=HOURS,
)  # fmt: skip


# ---- panagakis/batch_size: section 4.1, figures 14 and 15 ----

BATCHES = (64, 128, 256, 512)


BATCHES_EXPERIMENT = Experiment(
    "panagakis/batch_size",
    "the classifier by its batch size (figures 14 and 15)",
    stages={
        "autoencoder": ENCODER,
        **{str(size): _sweep_stage(("--data.batch_size", str(size)), EPOCHS) for size in BATCHES},
    },
    measure=_measure_sweep,
    claims=(
        # All from the text below figure 15.
        Claim("the smallest validation loss is that of 256", "loss_256",
              below("loss_64", "loss_128", "loss_512")),
        Claim("the highest validation accuracy is that of 256", "acc_256",
              above("acc_64", "acc_128", "acc_512"), percent=True),
        # Only the order of durations can be compared, since the seconds depend on the machine.
        Claim("larger batches make an epoch shorter: seconds with 64, above those with 128, 256, 512",
              "seconds_64", descending("seconds_128", "seconds_256", "seconds_512")),
        Claim("the training loss rises with the batch: with 512, above those with 256, 128, 64",
              "train_loss_512", descending("train_loss_256", "train_loss_128", "train_loss_64")),
        Claim("validation loss with 64", "loss_64"),
        Claim("seconds of an epoch with 512", "seconds_512"),
    ),
    draw=_draw_sweep("batch size", 14),
    cut=CUT.format(""),
    minutes={"quick": 8, "full": 2400},
    fewest_seeds=HOURS,
)  # fmt: skip


EXPERIMENTS = (
    AUTOENCODER_EXPERIMENT,
    CLASSIFIER_EXPERIMENT,
    CONTROLS_EXPERIMENT,
    LAYERS_EXPERIMENT,
    EPOCHS_EXPERIMENT,
    BATCHES_EXPERIMENT,
)
