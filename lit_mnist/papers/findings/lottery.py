"""The label lottery: how much the choice of the labelled images decides, for Yaramsetty's stack and without it.

For each of 1,000 draws 600 images per class are drawn and ordered at random; the first 1, 2, 5, … of each class
are the labelled ones. Every feature is classified in the same way, by the nearest class mean: it has nothing to
tune, and with one label per class it is the nearest neighbour. On the stack's code we also train the paper's
softmax layer, and place the paper's figures among its accuracies.

The paper scores 600 test images, so an accuracy should be a multiple of 1/600, and a mean over ten of them one of
1/6,000. `count_inconsistent` counts the printed accuracies that are not.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lit_mnist.data import ImageDataModule
from lit_mnist.data.loader import Batch
from lit_mnist.data.randomness import keyed_generator
from lit_mnist.models import Autoencoder
from lit_mnist.papers.report.claims import Claim, above, at_least
from lit_mnist.papers.report.drawing import COLOURS, finish, new_figure
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.heads import Heads, train_heads
from lit_mnist.papers.report.trained import TrainedStage, encode, test_split, train_split
from lit_mnist.papers.yaramsetty import FINE_TUNING, NEIGHBOURS, STACKS, TEN_LABELS
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 1000
COUNTS: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 600)
"""Labelled images per class."""
TRAINED_COUNTS = COUNTS[:4]
"""Counts for which softmax layers are trained: the time grows with the square of the number of images."""
FEATURES = {
    "stack": "784-100, trained (the paper's encoder)",
    "random": "784-100, random weights",
    "pca": "100 principal components",
    "pixels": "raw pixels",
}
RATE = 0.1
"""The paper's learning rate of the last layer, on the frozen 784-100."""
PAPER = {1: STACKS[(100,)][(0.1, 0)][1], 5: STACKS[(100,)][(0.1, 0)][5], 10: TEN_LABELS}
"""The paper's accuracies, by labels per class. The paper does not say which stack the last one belongs to."""
PRINTED = (
    "51.167", "51.167", "51.000", "63.033", "64.7", "63.250", "64.140", "63.956", "65.250",
    "51.033", "51.30", "51.897", "54.295", "55.027", "54.833", "69.333", "70.167", "69.833",
)  # fmt: skip
"""The test accuracies of tables II, III, VI, V, VIII and IX, in percent, with the decimals that are printed."""


def count_inconsistent(printed: Sequence[str], images: int) -> int:
    """Count the printed percentages that are not a share of `images` rounded to the same number of decimals."""

    def is_share(text: str) -> bool:
        decimals = len(text.partition(".")[2])
        exact = float(text) * images / 100
        return any(
            f"{100 * right / images:.{decimals}f}" == text for right in (math.floor(exact), math.ceil(exact))
        )

    return sum(not is_share(text) for text in printed)


def draw_labels(labels: Tensor, draws: int, most: int, generator: torch.Generator) -> Tensor:
    """Draw `most` images of each class in random order, `draws` times: their indices (draws, classes, most)."""
    members = [(labels == label).nonzero().squeeze(1) for label in torch.unique(labels)]
    # The positions of the largest uniform random numbers, largest first, are a random sequence without repetition.
    return torch.stack(
        [each[torch.rand(draws, len(each), generator=generator).topk(most).indices] for each in members], 1
    )


def nearest_mean_accuracies(
    codes: Tensor, drawn: Tensor, counts: Sequence[int], test: Tensor, labels: Tensor
) -> Tensor:
    """The accuracy of classifying by the nearest mean of the labelled codes of a class.

    Args:
        codes: (N, D) codes of the training images.
        drawn: (draws, classes, most) indices of labelled images.
        counts: Numbers of labelled images per class. Each uses the first of those drawn.
        test: (M, D) codes of the test images.
        labels: (M,) classes of the test images.

    Returns:
        (counts, draws).

    """
    scale = torch.tensor(counts)[:, None]
    accuracies = []
    for rows in drawn:
        sums = codes[rows].cumsum(1)[:, scale[:, 0] - 1]
        means = (sums / scale).transpose(0, 1)  # (counts, classes, D)
        nearness = test @ means.mT - means.square().sum(2)[:, None] / 2
        accuracies.append((nearness.argmax(2) == labels).float().mean(1))
    return torch.stack(accuracies, 1)


def _measure(runs: Runs) -> dict[str, float]:
    stage = runs["layer_1"]
    values = {f"inconsistent_{images}": float(count_inconsistent(PRINTED, images)) for images in (600, 6000)}
    for name in (*FEATURES, "softmax"):
        values |= stage.cached_json(f"lottery.{name}", partial(_draw_lots, name=name))
    values |= stage.cached_json("lottery.neighbours", _draw_neighbours)
    return values | {"gain_5": values["stack_5"] - values["random_5"]}


def _draw_neighbours(stage: TrainedStage) -> dict[str, float]:
    """Nearest neighbours among raw pixels with 1 and 5 labels per class: mean accuracy, and the paper's rank.

    The paper gives neither the number of neighbours nor that of labels, so both are what is usual for few labels.
    """
    _, train, test, drawn = _draws(stage)
    pixels, test_pixels = train.clean.flatten(1), test.clean.flatten(1)
    values: dict[str, float] = {}
    for count, neighbours in ((1, 1), (5, 1), (5, 5)):
        accuracies = neighbour_accuracies(pixels, train.y, drawn[:, :, :count], test_pixels, test.y, neighbours)
        name = f"{neighbours}_of_{count}"
        values[f"neighbours_{name}"] = round(float(accuracies.mean()), 4)
        values[f"rank_neighbours_{name}"] = round(float((accuracies <= NEIGHBOURS + 1e-4).float().mean()), 4)
    return values


def neighbour_accuracies(
    images: Tensor, classes: Tensor, drawn: Tensor, test: Tensor, labels: Tensor, neighbours: int
) -> Tensor:
    """The accuracy of the nearest labelled images for each draw, (draws,).

    Of equally frequent classes the one with the nearest image is chosen, while scikit-learn, and with it
    `probes.nearest_neighbours`, chooses the first class.

    Args:
        images: (N, D) training images.
        classes: (N,) their classes.
        drawn: (draws, classes, count) indices of labelled images.
        test: (M, D) test images.
        labels: (M,) their classes.
        neighbours: Number of neighbours that vote.

    """
    accuracies = []
    for rows in drawn.flatten(1):
        nearest = torch.cdist(test, images[rows]).topk(neighbours, largest=False).indices  # nearest first
        votes = classes[rows][nearest]
        counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
        answers = votes.gather(1, counts.argmax(1, keepdim=True))  # argmax returns the first of equal counts
        accuracies.append((answers.squeeze(1) == labels).float().mean())
    return torch.stack(accuracies)


def _draws(stage: TrainedStage) -> tuple[ImageDataModule, Batch, Batch, Tensor]:
    """The data, its training and test split, and the indices of the labelled images (draws, classes, most)."""
    data = stage.rebuild("--data.train_per_class", "null").datamodule  # the paper's test images, all for training
    data.setup("fit")
    data.setup("test")
    train, test = train_split(data), test_split(data)
    return data, train, test, draw_labels(train.y, DRAWS, COUNTS[-1], keyed_generator(data.seed, "lottery"))


def _draw_lots(stage: TrainedStage, name: str) -> dict[str, float]:
    """Mean accuracy, its 5 and 95 % quantiles over the draws, and for the softmax layers the paper's rank."""
    data, train, test, drawn = _draws(stage)
    feature = _feature(stage, name, train.clean)
    codes, test_codes = feature(train.clean), feature(test.clean)
    counts = TRAINED_COUNTS if name == "softmax" else COUNTS
    if name == "softmax":
        accuracies = []
        for count in counts:
            chosen = drawn[:, :, :count].flatten(1)
            generator = keyed_generator(data.seed, "lottery", count)
            heads = Heads.initial(DRAWS, codes.shape[1], drawn.shape[1], generator)
            heads, _ = train_heads(heads, codes[chosen], train.y[chosen], RATE, FINE_TUNING)
            accuracies.append(heads.accuracy(test_codes, test.y))
    else:
        accuracies = list(nearest_mean_accuracies(codes, drawn, counts, test_codes, test.y))
    values: dict[str, float] = {}
    for count, each in zip(counts, accuracies, strict=True):
        low, high = each.quantile(torch.tensor([0.05, 0.95])).tolist()
        found = {"": float(each.mean()), "low_": low, "high_": high, "spread_": high - low}
        if name == "softmax" and count in PAPER:
            found["rank_"] = float((each <= PAPER[count] + 1e-4).float().mean())
        values |= {f"{what}{name}_{count}": round(value, 4) for what, value in found.items()}
    return values


def _feature(stage: TrainedStage, name: str, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The function from images (N, C, H, W) to codes (N, D) for one of `FEATURES`. PCA is fitted on `images`."""
    if name == "pixels":
        return lambda batch: batch.flatten(1)
    if name == "pca":
        mean = images.flatten(1).mean(0)
        _, _, axes = torch.linalg.svd((images.flatten(1) - mean).T.cov(), full_matrices=False)
        return lambda batch: (batch.flatten(1) - mean) @ axes[:100].T
    model = stage.rebuild().model.eval() if name == "random" else stage.model()
    assert isinstance(model, Autoencoder)
    return lambda batch: torch.from_numpy(encode(model, batch))


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    figure = new_figure(9, 5, "Fashion-MNIST with few labels: accuracy over 1,000 choices of labelled images")
    axes = figure.subplots()
    series = FEATURES | {"softmax": "784-100, trained, with the paper's softmax layer"}
    for i, (colour, (name, label)) in enumerate(zip(COLOURS, series.items(), strict=False)):
        counts = TRAINED_COUNTS if name == "softmax" else COUNTS
        means, low, high = (
            np.array([summaries[f"{edge}{name}_{count}"].mean for count in counts])
            for edge in ("", "low_", "high_")
        )
        # Shifted sideways, so that the intervals do not cover each other.
        places = np.array(counts) * 1.1 ** (i - 2)
        axes.errorbar(places, means, yerr=[means - low, high - means], color=colour, fmt="o", ms=4, label=label)
    papers = [(n, value) for table in STACKS.values() for row in table.values() for n, value in row.items()]
    x, y = zip(*papers, (10, TEN_LABELS), strict=True)
    label = "the paper: three stacks"
    # Right of the marks for the same number of labels, which the stars would hide.
    places = np.array(x) * 1.1**3
    axes.scatter(places, y, marker="*", s=45, color="#222222", zorder=4, label=label)
    axes.plot([], [], " ", label="mean, and the middle 90 % of 1,000 choices:")
    axes.set(xscale="log", xlabel="labelled images per class", ylabel="test accuracy, %")
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    finish(axes, percent=True)
    axes.grid(axis="y", alpha=0.3)
    return {"lottery": figure}


SPAN = "the best accuracy of the paper's best network less that of its worst"

LOTTERY = Experiment(
    "findings/lottery",
    "how much the choice of the labelled images decides (Yaramsetty, section V.B)",
    {"layer_1": Stage("yaramsetty/layer_1", ("--model.hidden_sizes", "[100]"))},
    _measure,
    (
        Claim("the paper's differences are within chance, if each network has its own choice: with 1 label, 90 %"
              " of the draws on 784-100 span more than its networks differ", "spread_softmax_1",
              at_least(0.0386), percent=True, margin=SPAN),
        Claim("the same with 5 labels", "spread_softmax_5", at_least(0.0547), percent=True, margin=SPAN),
        Claim("nearest class mean, 5 labels: the draws on the stack's code span more than it gains over random"
              " weights", "spread_stack_5", above("gain_5"), percent=True),
        Claim("the stack's code is better than random weights, 100 principal components and raw pixels, 5 labels",
              "stack_5", above("random_5", "pca_5", "pixels_5"), percent=True),
        Claim("it still is with 600 labels", "stack_600", above("random_600", "pca_600", "pixels_600"),
              percent=True),
        *(
            Claim(f"draws with at most the paper's {100 * accuracy:.2f} %, labels per class: {count}",
                  f"rank_softmax_{count}", percent=True)
            for count, accuracy in PAPER.items()
        ),
        *(
            Claim(f"draws in which {neighbours} nearest neighbour{'s' * (neighbours > 1)} among raw pixels with"
                  f" {count} label{'s' * (count > 1)} per class are at most as good as the paper's"
                  f" {100 * NEIGHBOURS:.1f} %",
                  f"rank_neighbours_{neighbours}_of_{count}", percent=True)
            for count, neighbours in ((1, 1), (5, 1), (5, 5))
        ),
        Claim("how many of the paper's 18 test accuracies are no share of 600 images", "inconsistent_600",
              exact=True),
        Claim("how many are no mean of ten such shares", "inconsistent_6000", exact=True),
    ),
    _draw,
    "",
    {"quick": 10, "full": 10},
    "With 1 and 5 labels per class, the middle 90 % of 1,000 random choices of labels span"
    " {spread_softmax_1:.1%} and {spread_softmax_5:.1%} for the same stack. The paper ranks its three stacks by"
    " differences of 3.9 and 5.5 points, and does not say from how many choices, or whether the stacks share one."
    " With 5 labels, the nearest class mean reaches"
    " {stack_5:.1%} on the trained stack's code, {random_5:.1%} on that of random weights, and {pixels_5:.1%} on"
    " raw pixels. Of the paper's 18 test accuracies, {inconsistent_600:.0f} cannot be shares of 600 test images,"
    " and {inconsistent_6000:.0f} are not means of ten such shares either.",
)  # fmt: skip
