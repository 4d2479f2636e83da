"""Features of a CNN can decompress images, which Zhang says they cannot (section 4).

Zhang did not try: the CNN has no decoder. The simplest one, a linear map from the features of the trained CNN to
the pixels, needs no training, and shows how much of an image the features still hold. A CNN with random weights is
the control: what it keeps is due to the architecture, and not to learning.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_mnist.papers.report.claims import Claim, at_least
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.probes import explained_by, linear_decoder
from lit_mnist.papers.report.trained import TrainedStage, mean_image_mse, predict, test_split, train_split
from lit_mnist.papers.zhang import ENCODER, READABLE, decompressed
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.report import one_per_class
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _measure(runs: Runs) -> dict[str, float]:
    autoencoder, cnn = runs["autoencoder"], runs["cnn"]
    mean = autoencoder.cached_metric("mean_image_mse", mean_image_mse)
    return {
        "trained": cnn.cached_metric("decompressed", decompressed),
        "random": cnn.cached_metric("decompressed_random", _explained_by_random),
        "autoencoder": 1 - autoencoder.test_metrics()["test/mse"] / mean,
    }


def _explained_by_random(stage: TrainedStage) -> float:
    return explained_by(stage.rebuild().model.eval(), stage.data())


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    cnn, autoencoder = seeds[0]["cnn"], seeds[0]["autoencoder"]
    data = cnn.data()
    shown, train = one_per_class([test_split(data)]).clean, train_split(data).clean
    names = {
        "trained": f"2,548 features of the CNN, linear map: R² {summaries['trained'].mean:.1%}",
        "random": f"2,548 features of a random CNN: {summaries['random'].mean:.1%}",
        "autoencoder": f"98 numbers, autoencoder: {summaries['autoencoder'].mean:.1%}",
    }
    rows = {
        "original": shown.numpy(),
        names["trained"]: linear_decoder(cnn.model(), train)(shown).numpy(),
        names["random"]: linear_decoder(cnn.rebuild().model.eval(), train)(shown).numpy(),
        names["autoencoder"]: predict(autoencoder.model(), shown).numpy(),
    }
    return {"images": image_rows(rows, "Unseen digits, restored from features that were trained to classify")}


DECOMPRESS = Experiment(
    "findings/decompress",
    "images restored from the features of a CNN (Zhang, section 4)",
    {"cnn": Stage("zhang/cnn"), "autoencoder": ENCODER},
    _measure,
    (
        # No rule: zhang/cnn has the verdict on this number.
        Claim("the features of the trained CNN: variance that a linear map from them explains", "trained",
              percent=True),
        Claim("so can those of a random CNN: training to classify is not what keeps the image", "random",
              at_least(0.8), percent=True, margin=READABLE),
        Claim("the autoencoder, with 98 numbers and a trained decoder", "autoencoder", percent=True),
    ),
    _draw,
    "",
    {"quick": 10, "full": 10},
    "A linear map from the 2,548 features that Zhang's CNN has learned for classifying explains {trained:.1%} of"
    " the variance of unseen digits; the autoencoder's 98 numbers explain {autoencoder:.1%}. Features of a CNN"
    " that was never trained give {random:.1%}. So the paper's conclusion, that such features cannot decompress,"
    " does not hold for a linear decoder.",
)  # fmt: skip
