"""Zhang (MNIST): autoencoder, classifiers on its features, CNN, compression, pruning.

"Using Representation from Autoencoder or Convolutional Neural Network to Classify Hand-Written Digit Pictures".
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback

from lit_mnist.models import Autoencoder, DenseAutoencoder
from lit_mnist.models.pruning import Removal, distinctiveness, find_removals, pruned
from lit_mnist.papers.report.claims import Claim, above, at_least, at_most, below, descending
from lit_mnist.papers.report.drawing import bars, curves, finish, new_figure
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.probes import explained_by, linear_probe, nearest_neighbours
from lit_mnist.papers.report.trained import (
    TrainedStage,
    encode,
    mean_image_mse,
    predict,
    test_split,
    train_split,
)
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.report import one_per_class
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# ---- Shared by several experiments ----

# Section 3.1: 784-98-784, SGD at learning rate 0.05 and momentum 0.99, 40,000 images, 40,000 iterations. The quick
# preset does not shorten it, since on features after 10,000 iterations momentum 0.99 does not diverge completely
# (27.7 % test accuracy, compared with 10.1 % after 40,000).
ENCODER = Stage("zhang/autoencoder")
SHORT = ("--trainer.max_steps", "10000")
"""The quick preset of the experiments that train many autoencoders."""
# The paper says "clear" without a number, so the bound is this project's.
READABLE = "at four fifths of the variance all ten digits of figure 1 can be read"
TWICE_CHANCE = "chance is 10 %: a classifier that does not work stays below twice that"


# ---- zhang/cnn: sections 2.4 and 3.4, figure 4 ----
# The paper counts "epochs", which are interpreted as iterations, since 200 passes over 60,000 images would give
# far more than the 80 % that it reports after 200. It states neither their total number nor a validation split.


def _measure_cnn(runs: Runs) -> dict[str, float]:
    stage = runs["cnn"]
    return {
        # Training metrics are logged every 50 steps as means, so this is the mean of the 50 steps before iteration
        # 200.
        "acc_200": dict(stage.history("train/acc"))[200],
        "acc": stage.test_metrics()["test/acc"],
        "decompressed": stage.cached_metric("decompressed", decompressed),
    }


def decompressed(stage: TrainedStage) -> float:
    """Share of the test images' variance that a linear map from the CNN's features explains (R²)."""
    return explained_by(stage.model(), stage.data())


def _draw_cnn(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    drawn = {}
    for name, metric, what, ylabel, paper in (
        ("figure_4", "acc", "accuracy", "accuracy, %", (200, 0.8)),
        ("figure_4_loss", "loss", "loss", "cross-entropy", None),
    ):
        histories = {"training": [runs["cnn"].history(f"train/{metric}") for runs in seeds]}
        drawn[name] = curves(histories, f"Zhang, figure 4: {what} of the CNN", ylabel, paper=paper)
    return drawn


CNN_EXPERIMENT = Experiment(
    "zhang/cnn",
    "the convolutional classifier (figure 4)",
    stages={"cnn": Stage("zhang/cnn")},
    measure=_measure_cnn,
    claims=(
        # Section 3.4 and figure 4; the 200 and the 98 % are the paper's.
        Claim("above 80 % after 200 iterations", "acc_200", at_least(0.8), 0.8, percent=True),
        Claim("98 % in the end", "acc", at_least(0.975), 0.98, percent=True,
              margin="the paper gives whole percent: 97.5 and more is its 98"),
        # Section 4 concludes this without trying a decoder. A linear map is the weakest decoder that could
        # contradict it.
        Claim("the CNN's features cannot decompress the images: variance of the test images that a linear map"
              " from them explains", "decompressed", at_most(0.8), percent=True,
              margin="80 % is the bound at which the autoencoder's images count as decompressed clearly"),
    ),
    draw=_draw_cnn,
    cut="",
    minutes={"quick": 4, "full": 4},
)  # fmt: skip


# ---- zhang/feature_classifier: sections 2.3 and 3.3, figure 3 ----
# The paper's main negative result: no parameters make a classifier work on the autoencoder's features. It states
# only one of the settings that it tried, and no batch size. The other settings and the two probes are this
# project's.

ADAM = ("--model.optimizer", "adam", "--model.momentum", "0", "--model.lr", "0.001")
FEATURES = {
    "autoencoder": ENCODER,
    # The caption of figure 3 names these settings, which are those of the configuration.
    "momentum_099": Stage("zhang/feature_classifier", source=ENCODER),
    # Additional settings with one change each: smaller steps in two ways, and an optimiser that adapts its steps.
    "momentum_09": Stage("zhang/feature_classifier", ("--model.momentum", "0.9"), source=ENCODER),
    "lr_001": Stage("zhang/feature_classifier", ("--model.lr", "0.01"), source=ENCODER),
    "adam": Stage("zhang/feature_classifier", ADAM, source=ENCODER),
}
FEATURE_LABELS = {
    "momentum_099": "paper: lr 0.05,\nmomentum 0.99",
    "momentum_09": "momentum 0.9",
    "lr_001": "lr 0.01,\nmomentum 0.99",
    "adam": "Adam",
    "linear_probe": "linear probe",
    "neighbours": "5 nearest\nneighbours",
}


def _measure_features(runs: Runs) -> dict[str, float]:
    # The last checkpoint is the result of a training. With momentum 0.99 the best one is from the first epoch,
    # before the accuracy falls to chance; its accuracy is an additional number.
    tested = {name: stage.test_metrics("last") for name, stage in runs.items() if name != "autoencoder"}
    values = {name: metrics["test/acc"] for name, metrics in tested.items()}
    paper = runs["momentum_099"]
    values["loss"] = tested["momentum_099"]["test/loss"]
    values["momentum_099_best"] = paper.test_metrics()["test/acc"]
    values["lowest_loss"] = min(loss for _, loss in paper.history("train/loss"))
    # Chosen on validation images, since choosing on test images would be biased.
    others = ("momentum_09", "lr_001", "adam")
    values["best"] = values[max(others, key=lambda name: runs[name].history("val/acc")[-1][1])]
    # Controls without gradient descent: if they can classify the features, the features are not the cause.
    source, classifier = runs["autoencoder"], runs["momentum_09"]
    for name, probe in (("linear_probe", linear_probe), ("neighbours", nearest_neighbours)):
        values[name] = source.cached_metric(f"{name}_18000", _probe_features, classifier, probe)
    return values


def _probe_features(source: TrainedStage, classifier: TrainedStage, probe: Callable[..., float]) -> float:
    """Accuracy of `probe` on the codes of the encoder `source`, for the images that `classifier` learns from."""
    model = source.model()
    assert isinstance(model, Autoencoder)
    data = classifier.data()
    train, test = train_split(data), test_split(data)
    return probe(encode(model, train.clean), train.y.numpy(), encode(model, test.clean), test.y.numpy())


def _draw_features(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    numbers = {label: summaries[name] for name, label in FEATURE_LABELS.items()}
    title = "Zhang: classifiers on the same frozen features of the autoencoder"
    names = [name for name in FEATURE_LABELS if name in seeds[0]]
    histories = {
        FEATURE_LABELS[name].replace("\n", " "): [r[name].history("train/loss") for r in seeds] for name in names
    }
    return {
        "classifiers": bars(numbers, title, "test accuracy, %", {"chance": 0.1}),
        "figure_3": curves(histories, "Zhang, figure 3: loss of those classifiers", "cross-entropy"),
    }


FEATURES_EXPERIMENT = Experiment(
    "zhang/feature_classifier",
    "a classifier on the autoencoder's frozen features (figure 3)",
    stages=FEATURES,
    measure=_measure_features,
    claims=(
        # Figure 3: the paper's own settings.
        Claim("lr 0.05, momentum 0.99: does not work at all; at the end of the training", "momentum_099",
              at_most(0.2), percent=True, margin=TWICE_CHANCE),
        Claim("with those settings the loss does not become low: test loss at the end (2.30 is chance)", "loss",
              at_least(2.0),
              margin="a cross-entropy of 2.0 is an answer only slightly better than chance, 2.30"),
        Claim("with those settings, lowest training loss on the way, as a mean over 50 steps", "lowest_loss"),
        Claim("with those settings, at the checkpoint with the best validation accuracy", "momentum_099_best",
              percent=True),
        # Section 3.3: "no matter how I change the parameters". One setting that works contradicts it.
        Claim("no parameters work: the best of the three below, chosen on validation images", "best",
              at_most(0.2), percent=True, margin=TWICE_CHANCE),
        # Not in the paper: which settings work, and probes of the features without training a network.
        Claim("momentum 0.9, nothing else changed", "momentum_09", percent=True),
        Claim("lr 0.01, nothing else changed", "lr_001", percent=True),
        Claim("Adam, lr 0.001", "adam", percent=True),
        Claim("logistic regression on the features", "linear_probe", percent=True),
        Claim("5 nearest neighbours among the features", "neighbours", percent=True),
    ),
    draw=_draw_features,
    cut="",
    minutes={"quick": 10, "full": 10},
    finding="With the paper's settings the test accuracy is {momentum_099:.1%} at the end of the training, and"
    " {momentum_099_best:.1%} at its best checkpoint. On the same features momentum 0.9 reaches {momentum_09:.1%},"
    " Adam {adam:.1%} and a linear probe {linear_probe:.1%}.",
)  # fmt: skip


# ---- zhang/autoencoder: sections 2.2 and 3.1, figure 1 ----
# The paper shows ten decompressed digits and calls them clear; it gives no number. Not stated: the activation of
# the output, the batch size.


def _measure_autoencoder(runs: Runs) -> dict[str, float]:
    stage = runs["autoencoder"]
    # Explained variance: 1 for perfect images, 0 if the result is no better than the mean training image.
    mse = stage.test_metrics()["test/mse"]
    return {"mse": mse, "explained": 1 - mse / stage.cached_metric("mean_image_mse", mean_image_mse)}


def _draw_autoencoder(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    stage = seeds[0]["autoencoder"]
    split = one_per_class([test_split(stage.data())])
    rows = {"original": split.clean.numpy(), "decompressed": predict(stage.model(), split.x).numpy()}
    return {"figure_1": image_rows(rows, "Zhang, figure 1: unseen digits through 784-98-784")}


AUTOENCODER_EXPERIMENT = Experiment(
    "zhang/autoencoder",
    "784-98-784, compression by 8 (figure 1)",
    stages={"autoencoder": ENCODER},
    measure=_measure_autoencoder,
    claims=(
        Claim("unseen digits are decompressed clearly: variance explained", "explained", at_least(0.8),
              percent=True, margin=READABLE),
        Claim("mean squared error of the test images", "mse"),
    ),
    draw=_draw_autoencoder,
    cut="",
    minutes={"quick": 5, "full": 5},
)  # fmt: skip


# ---- zhang/autoencoder_settings: section 3.1 ----
# "Preliminary experiments" gave learning rate 0.05 and momentum 0.99. The paper does not say what else was tried.

SETTINGS = {
    "paper": (),
    # Smaller steps: with momentum, a step is lr / (1 - momentum) in the long run, which is 5 for the paper's
    # setting.
    "momentum_09": ("--model.momentum", "0.9"),
    "lr_001": ("--model.lr", "0.01"),
    "lr_01_momentum_09": ("--model.lr", "0.1", "--model.momentum", "0.9"),
    # Larger steps: both double it, to 10.
    "lr_01": ("--model.lr", "0.1"),
    "momentum_0995": ("--model.momentum", "0.995"),
}
"""Learning rates and momenta of the autoencoder: the paper's 0.05 and 0.99, smaller steps and larger ones."""


def _measure_settings(runs: Runs) -> dict[str, float]:
    # On validation images, as the paper's choice of settings would have to be.
    return {f"mse_{name}": stage.history("val/mse")[-1][1] for name, stage in runs.items()}


def _draw_settings(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    histories = {name: [runs[name].history("val/mse") for runs in seeds] for name in SETTINGS}
    return {"settings": curves(histories, "Zhang: the autoencoder's settings", "validation MSE", log=True)}


SETTINGS_EXPERIMENT = Experiment(
    "zhang/autoencoder_settings",
    "the autoencoder by learning rate and momentum (section 3.1)",
    stages={name: Stage("zhang/autoencoder", flags, SHORT) for name, flags in SETTINGS.items()},
    measure=_measure_settings,
    claims=(
        # Two claims, since either direction can fail alone.
        Claim("0.05 and 0.99 are better than smaller steps: validation MSE, below that of three settings",
              "mse_paper", below("mse_momentum_09", "mse_lr_001", "mse_lr_01_momentum_09")),
        Claim("they are better than larger steps: validation MSE, below that of two settings", "mse_paper",
              below("mse_lr_01", "mse_momentum_0995")),
        Claim("validation MSE with learning rate 0.05, momentum 0.9", "mse_momentum_09"),
        Claim("validation MSE with learning rate 0.01, momentum 0.99", "mse_lr_001"),
        Claim("validation MSE with learning rate 0.1, momentum 0.9", "mse_lr_01_momentum_09"),
        Claim("validation MSE with learning rate 0.1, momentum 0.99", "mse_lr_01"),
        Claim("validation MSE with learning rate 0.05, momentum 0.995", "mse_momentum_0995"),
    ),
    draw=_draw_settings,
    cut="10,000 iterations instead of 40,000",
    minutes={"quick": 9, "full": 36},
)  # fmt: skip


# ---- zhang/compression: section 3.2, figure 2 ----
# The paper writes that "the number of hidden neurons should not be more than 8". This is interpreted as the
# compression ratio, since the paper's own network has 98 hidden neurons, with ratio 8. The sizes of figure 2 are
# not in the text.

SIZES = (392, 196, 98, 49, 24, 12)
"""Hidden sizes for compression ratios 2, 4, 8, 16, 33 and 65."""
LAST_POINTS = 100
"""Number of points of the training loss, each the mean of 50 steps, for measuring its fluctuation."""
ADVISED = 20_000
"""Number of iterations that training should exceed, according to the paper."""


def _measure_compression(runs: Runs) -> dict[str, float]:
    values = {}
    for name, stage in runs.items():
        values[f"mse_{name}"] = mse = stage.test_metrics()["test/mse"]
        values[f"explained_{name}"] = 1 - mse / stage.cached_metric("mean_image_mse", mean_image_mse)
        history = stage.history("train/loss")
        steps, losses = np.array(history[-LAST_POINTS:]).T
        # Fluctuation around a straight line, since a steadily falling loss does not fluctuate.
        trend = np.polyval(np.polyfit(steps - steps[0], losses, 1), steps - steps[0])
        values[f"fluctuation_{name}"] = float((losses - trend).std())
        # Compared over 20 points (1,000 iterations), since single points fluctuate more than the loss falls. A
        # shortened training ends before and does not measure it.
        if steps[-1] > ADVISED:
            advised = np.mean([loss for step, loss in history if step <= ADVISED][-20:])
            values[f"gain_after_advised_{name}"] = float(1 - losses[-20:].mean() / advised)
    return values


def _draw_compression(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    histories = {
        f"{size} neurons, 1:{784 / size:.0f}": [runs[f"h{size}"].history("train/loss") for runs in seeds]
        for size in SIZES
    }
    title = "Zhang, figure 2: loss by compression ratio"
    return {"figure_2": curves(histories, title, "training loss (MSE)", log=True)}


COMPRESSION_EXPERIMENT = Experiment(
    "zhang/compression",
    "the autoencoder by compression ratio (figure 2)",
    stages={
        f"h{size}": Stage("zhang/autoencoder", ("--model.hidden_sizes", f"[{size}]"), SHORT) for size in SIZES
    },
    measure=_measure_compression,
    claims=(
        # Figure 2: the curves are ordered by ratio.
        Claim("loss rises with compression: test MSE with 12 neurons, above 24, 49, 98, 196, 392", "mse_h12",
              descending(*(f"mse_h{size}" for size in SIZES[-2::-1]))),
        # Section 3.2: "more hidden neurons can alleviate the intensity". First the largest and smallest sizes,
        # then all.
        Claim("the loss fluctuates more with fewer neurons: 12 against 392", "fluctuation_h12",
              above("fluctuation_h392")),
        Claim("the same over all sizes, each against the next larger one", "fluctuation_h12",
              descending(*(f"fluctuation_h{size}" for size in SIZES[-2::-1]))),
        # Section 3.2 advises more than 20,000, in the same sentence as the ratio of at most 8.
        Claim("training should exceed 20,000 iterations: share by which the training loss with 98 neurons"
              " falls after them", "gain_after_advised_h98", at_least(0.05), percent=True,
              margin="a loss that falls by less than 5 % looks flat in figure 2"),
        Claim("compression by 8 is possible: variance explained at 1:8", "explained_h98", at_least(0.8),
              percent=True, margin=READABLE),
        Claim("more than 8 is not: variance explained at 1:16", "explained_h49", at_most(0.8),
              percent=True, margin="the same bound from below"),
        Claim("test MSE at 1:8", "mse_h98"),
        Claim("test MSE at 1:65", "mse_h12"),
    ),
    draw=_draw_compression,
    cut="each autoencoder is trained for 10,000 iterations instead of 40,000",
    minutes={"quick": 9, "full": 36},
)  # fmt: skip


# ---- zhang/pruning: sections 1, 3.2 and 4 ----
# The paper only cites Gedeon (1995) for pruning: no threshold, no number of neurons, no figure. 15° and 165° are
# Gedeon's.

PRUNING_ANGLE = 15
"""Degrees. Gedeon's threshold: neurons closer than this to another, or to its opposite, are removed."""
PRUNING_ANGLES = (15, 30, 60, 65, 70, 75, 80)
"""Wider thresholds, for the curve of the error over the number of removed neurons."""
COMPARED_IMAGES = 2000
"""Training images over which the activations of neurons are compared."""
RETRAINING_STEPS = 1000


def _measure_pruning(runs: Runs) -> dict[str, float]:
    """For each angle: neurons removed, and the test MSE after removing them and after retraining."""
    stage = runs["autoencoder"]
    values = {"mse_unpruned": stage.test_metrics()["test/mse"]}
    # The number of retraining steps is part of the cached name, since it affects the result.
    for angle in PRUNING_ANGLES:
        values[f"removed_{angle}"] = stage.cached_metric(f"removed_{angle}", _count_removed, angle)
        values[f"mse_{angle}"] = stage.cached_metric(f"mse_pruned_{angle}", _pruned_mse, angle)
        name = f"mse_retrained_{angle}_{RETRAINING_STEPS}"
        values[f"retrained_{angle}"] = stage.cached_metric(name, _retrained_mse, angle)
    # The claims about Gedeon's own threshold have names without an angle.
    names = {"removed": "removed", "mse_pruned": "mse", "mse_retrained": "retrained"}
    return values | {name: values[f"{short}_{PRUNING_ANGLE}"] for name, short in names.items()}


def _find_removals(stage: TrainedStage, angle: float) -> tuple[DenseAutoencoder, list[Removal]]:
    """The trained autoencoder, and the neurons that pruning by distinctiveness removes from it."""
    model = stage.model()
    assert isinstance(model, DenseAutoencoder)
    data = stage.rebuild().datamodule
    data.setup("fit")
    # Neurons at 180° have opposite activations. Their sum is nearly constant, and both are removed.
    angles = distinctiveness(model, train_split(data).clean[:COMPARED_IMAGES])
    return model, find_removals(angles, angle, 180 - angle)


def _count_removed(stage: TrainedStage, angle: float) -> int:
    return sum(len(removal.removed) for removal in _find_removals(stage, angle)[1])


def _pruned_mse(stage: TrainedStage, angle: float) -> float:
    return _test_mse(pruned(*_find_removals(stage, angle)), stage)


def _retrained_mse(stage: TrainedStage, angle: float) -> float:
    smaller = pruned(*_find_removals(stage, angle))
    cli = stage.rebuild("--trainer.max_steps", str(RETRAINING_STEPS), "--trainer.enable_progress_bar", "false")
    # This training takes seconds. It has no run and no checkpoint; only the number is stored.
    trainer = cli.make_trainer(
        logger=False, enable_checkpointing=False, limit_val_batches=0, callbacks=[_StopOnSignal(stage.watch)]
    )
    trainer.fit(smaller, datamodule=cli.datamodule)
    return _test_mse(smaller.cpu().eval(), stage)


def _test_mse(model: DenseAutoencoder, stage: TrainedStage) -> float:
    split = test_split(stage.data())
    return float((predict(model, split.x) - split.clean).square().mean())


class _StopOnSignal(Callback):
    """Ends the retraining at the first step after a signal, without saving a checkpoint."""

    def __init__(self, watch: SignalWatch) -> None:
        self.watch = watch

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.watch.check()


def _draw_pruning(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    """Draw the test error over the number of removed neurons."""
    figure = new_figure(7.5, 4.2, "Zhang: pruning by distinctiveness")
    axes = figure.subplots()
    removed = [0.0, *(summaries[f"removed_{angle}"].mean for angle in PRUNING_ANGLES)]
    start = summaries["mse_unpruned"]
    for name, label in (("mse", "pruned"), ("retrained", f"retrained for {RETRAINING_STEPS:,} iterations")):
        errors = [start, *(summaries[f"{name}_{angle}"] for angle in PRUNING_ANGLES)]
        means, intervals = [error.mean for error in errors], [error.interval or 0.0 for error in errors]
        axes.errorbar(removed, means, yerr=intervals, marker="o", capsize=3, label=label)
    labelled = -3.0
    for angle, x in zip(PRUNING_ANGLES, removed[1:], strict=True):
        if x >= labelled + 3:  # labels of points closer than three neurons would overlap
            place = (x, summaries[f"mse_{angle}"].mean)
            axes.annotate(f"{angle}°", place, (-4, 4), textcoords="offset points", fontsize=8, ha="right")
            labelled = x
    axes.set(xlabel="hidden neurons removed, of 98", ylabel="test MSE")
    finish(axes)
    return {"pruning": figure}


PRUNING_EXPERIMENT = Experiment(
    "zhang/pruning",
    "hidden neurons pruned by distinctiveness (sections 1 and 4)",
    stages={"autoencoder": ENCODER},
    measure=_measure_pruning,
    claims=(
        # Sections 3.2 and 4, after Gedeon (1995), who trained on a single image.
        Claim("quality falls as neurons are pruned: test MSE after pruning, above that before", "mse_pruned",
              above("mse_unpruned")),
        Claim("the more neurons are pruned, the worse: test MSE at 80°, above 70°, 60°, 30°", "mse_80",
              descending("mse_70", "mse_60", "mse_30")),
        Claim("test MSE before", "mse_unpruned"),
        Claim("hidden neurons closer than 15° to another or its opposite", "removed"),
        Claim("test MSE after retraining the smaller network", "mse_retrained"),
    ),
    draw=_draw_pruning,
    cut="",
    minutes={"quick": 7, "full": 7},
)  # fmt: skip


# In the order of the table of results.
EXPERIMENTS = (
    CNN_EXPERIMENT,
    FEATURES_EXPERIMENT,
    AUTOENCODER_EXPERIMENT,
    SETTINGS_EXPERIMENT,
    COMPRESSION_EXPERIMENT,
    PRUNING_EXPERIMENT,
)
