"""Zhang, "Using Representation from Autoencoder or CNN to Classify Hand-Written Digit Pictures" (MNIST)."""

from collections.abc import Sequence
from statistics import pstdev
from typing import TYPE_CHECKING

from lit_mnist.models import Autoencoder
from lit_mnist.papers.report.claims import Above, AtLeast, AtMost, Claim, Descending
from lit_mnist.papers.report.drawing import bars, curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.probes import linear_probe, mean_image_mse, nearest_neighbours
from lit_mnist.papers.report.pruned import draw_pruning, measure_pruning
from lit_mnist.papers.report.trained import Trained, codes, one_per_class, reconstruct, test_split, train_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORT = ("--trainer.max_steps", "10000")
SIZES = (392, 196, 98, 49, 24, 12)
"""Of the hidden layer: compression ratios 2, 4, 8, 16, 33, 65."""
LAST_WINDOWS = 100
"""Means over 50 steps of which a loss's fluctuation is taken."""

# Not cut in the quick preset: on features of 10,000 iterations momentum 0.99 has not quite diverged in the end.
ENCODER = Stage("zhang/autoencoder")
ADAM = ("--model.optimizer", "adam", "--model.momentum", "0", "--model.lr", "0.001")
FEATURES = {
    "autoencoder": ENCODER,
    "momentum_099": Stage("zhang/feature_classifier", source=ENCODER),
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


def _measure_cnn(runs: Runs) -> dict[str, float]:
    run = runs["cnn"]
    return {"acc_200": dict(run.history("train/acc"))[200], "acc": run.tested()["test/acc"]}


def _draw_cnn(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    histories = {"training accuracy": [runs["cnn"].history("train/acc") for runs in seeds]}
    return {"figure_4": curves(histories, "Zhang, figure 4: the CNN", "accuracy")}


def _measure_features(runs: Runs) -> dict[str, float]:
    # The last checkpoint: the best one would be that of the first epoch, before momentum 0.99 has diverged.
    tested = {name: run.tested("last") for name, run in runs.items() if name != "autoencoder"}
    values = {name: metrics["test/acc"] for name, metrics in tested.items()}
    values["loss"] = tested["momentum_099"]["test/loss"]
    values["best"] = max(values["momentum_09"], values["lr_001"], values["adam"])
    encoder, source = runs["momentum_09"], runs["autoencoder"]
    for name, probe in (("linear_probe", linear_probe), ("neighbours", nearest_neighbours)):
        values[name] = source.once(f"{name}_18000", lambda probe=probe: _probed(source, encoder, probe))  # type: ignore[misc]
    return values


def _probed(source: Trained, features: Trained, probe: "type") -> float:
    model = source.model()
    assert isinstance(model, Autoencoder)
    data = features.data()
    train, test = train_split(data), test_split(data)
    return float(probe(codes(model, train.clean), train.y.numpy(), codes(model, test.clean), test.y.numpy()))


def _draw_features(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    numbers = {label: summaries[name] for name, label in FEATURE_LABELS.items()}
    title = "Zhang, figure 3: classifiers on the same frozen features of the autoencoder"
    return {"figure_3": bars(numbers, title, "test accuracy, %", {"chance": 0.1})}


def _measure_autoencoder(runs: Runs) -> dict[str, float]:
    run = runs["autoencoder"]
    mse = run.tested()["test/mse"]
    return {"mse": mse, "explained": 1 - mse / run.once("mean_image_mse", lambda: mean_image_mse(run.data()))}


def _draw_autoencoder(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    run = seeds[0]["autoencoder"]
    split = one_per_class(test_split(run.data()))
    rows = {"original": split.clean.numpy(), "decompressed": reconstruct(run.model(), split.x).numpy()}
    return {"figure_1": image_rows(rows, "Zhang, figure 1: unseen digits through 784-98-784")}


def _measure_compression(runs: Runs) -> dict[str, float]:
    values = {}
    for name, run in runs.items():
        values[f"mse_{name}"] = run.tested()["test/mse"]
        losses = [loss for _, loss in run.history("train/loss")][-LAST_WINDOWS:]
        values[f"fluctuation_{name}"] = pstdev(losses)
    return values


def _draw_compression(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    histories = {
        f"{size} neurons, 1:{784 / size:.0f}": [runs[f"h{size}"].history("train/loss") for runs in seeds]
        for size in SIZES
    }
    title = "Zhang, figure 2: loss by compression ratio"
    return {"figure_2": curves(histories, title, "training loss (MSE)", log=True)}


def _sized(size: int) -> Stage:
    return Stage("zhang/autoencoder", ("--model.hidden_sizes", f"[{size}]"), SHORT)


EXPERIMENTS = (
    Experiment(
        "zhang/cnn",
        "the convolutional classifier (figure 4)",
        {"cnn": Stage("zhang/cnn")},
        _measure_cnn,
        (
            Claim("above 80 % after 200 iterations", "acc_200", AtLeast(0.8), 0.8, percent=True),
            Claim("98 % in the end", "acc", AtLeast(0.98), 0.98, percent=True),
        ),
        _draw_cnn,
        "",
        {"quick": 4, "full": 4},
    ),
    Experiment(
        "zhang/feature_classifier",
        "a classifier on the autoencoder's frozen features (figure 3)",
        FEATURES,
        _measure_features,
        (
            Claim("lr 0.05, momentum 0.99: does not work at all", "momentum_099", AtMost(0.2), percent=True),
            Claim("there the loss stays high (2.30 is chance)", "loss", AtLeast(2.0)),
            Claim("it does not work whatever the parameters", "best", AtMost(0.2), percent=True),
            Claim("momentum 0.9, nothing else changed", "momentum_09", None, percent=True),
            Claim("lr 0.01, nothing else changed", "lr_001", None, percent=True),
            Claim("Adam, lr 0.001", "adam", None, percent=True),
            Claim("logistic regression on the features", "linear_probe", None, percent=True),
            Claim("5 nearest neighbours among the features", "neighbours", None, percent=True),
        ),
        _draw_features,
        "",
        {"quick": 10, "full": 10},
        "On the very same features the paper's settings reach {momentum_099:.1%}, momentum 0.9 {momentum_09:.1%},"
        " Adam {adam:.1%} and a linear probe {linear_probe:.1%}.",
    ),
    Experiment(
        "zhang/autoencoder",
        "784-98-784, compression by 8 (figure 1)",
        {"autoencoder": ENCODER},
        _measure_autoencoder,
        (
            Claim(
                "unseen digits come out clearly: variance explained",
                "explained",
                AtLeast(0.8),
                percent=True,
            ),
            Claim("mean squared error of the test images", "mse", None),
        ),
        _draw_autoencoder,
        "",
        {"quick": 5, "full": 5},
    ),
    Experiment(
        "zhang/compression",
        "the autoencoder by compression ratio (figure 2)",
        {f"h{size}": _sized(size) for size in SIZES},
        _measure_compression,
        (
            Claim(
                "loss rises with compression",
                "mse_h12",
                Descending(tuple(f"mse_h{size}" for size in SIZES[-2::-1])),
            ),
            Claim(
                "the loss fluctuates more with fewer neurons (12 against 392)",
                "fluctuation_h12",
                Above(("fluctuation_h392",)),
            ),
            Claim("test MSE at 1:8, which compression should not exceed", "mse_h98", None),
            Claim("test MSE at 1:65", "mse_h12", None),
        ),
        _draw_compression,
        "each autoencoder is trained for 10,000 iterations instead of 40,000",
        {"quick": 9, "full": 36},
    ),
    Experiment(
        "zhang/pruning",
        "hidden neurons pruned by distinctiveness (sections 1 and 4)",
        {"autoencoder": ENCODER},
        measure_pruning,
        (
            Claim("quality falls as neurons are pruned: test MSE after", "mse_pruned", Above(("mse_unpruned",))),
            Claim("test MSE before", "mse_unpruned", None),
            Claim("hidden neurons closer than 15° to another or its opposite", "removed", None),
            Claim("test MSE after retraining the smaller network", "mse_retrained", None),
        ),
        draw_pruning,
        "",
        {"quick": 7, "full": 7},
    ),
)
