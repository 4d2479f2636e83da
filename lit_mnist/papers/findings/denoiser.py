"""How good a denoiser can be: the posterior mean over the training images, beside Yaramsetty's autoencoders.

The mean squared error is smallest for the mean of the clean image given the noisy one. If every image were one of
the 6,000 training images, give or take a deviation of each pixel, that mean could be computed: each training image
is weighted by the probability that the noise makes the noisy image out of it (empirical Bayes). Salt and pepper
leave a value between 0 and 1 as it was, so there the answer is the noisy image itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_mnist.papers.report.claims import Claim, above
from lit_mnist.papers.report.drawing import COLOURS, finish, new_figure
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import TrainedStage, mean_image_mse, predict, test_split, train_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.report import one_per_class
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5)
"""Noise in training and in testing: the probability of salt, which is also the probability of pepper."""
DEVIATIONS = (0.05, 0.1, 0.2, 0.3)
"""Candidates for a pixel's standard deviation around a training image's pixel; validation images choose one."""
VALIDATED = 300
"""Validation images that choose among `DEVIATIONS`."""


def posterior_mean(noisy: Tensor, images: Tensor, level: float, deviation: float) -> Tensor:
    """The mean of the clean image, given the noisy one and that it lies near one of `images`.

    The model of a clean pixel is a training image's pixel plus a normal deviation. At 0 and 1, the values of most
    pixels, the density is scaled to 1 at the training image's own value, so that it counts as a probability there.

    Args:
        noisy: (B, D) images with salt and pepper.
        images: (N, D) clean training images.
        level: Probability of salt, and of pepper.
        deviation: Standard deviation of a pixel around that of a training image.

    Returns:
        (B, D).

    """
    kept = 1 - 2 * level
    salt, pepper = (noisy == 1).float(), (noisy == 0).float()
    between = 1 - salt - pepper
    # The likelihood of a value 0 or 1: by noise, or a clean pixel near it that was kept.
    near = {value: kept * torch.exp(-((images - value) ** 2) / (2 * deviation**2)) for value in (0.0, 1.0)}
    log_weights = salt @ torch.log(level + near[1.0]).T + pepper @ torch.log(level + near[0.0]).T
    if kept > 0:
        square = (noisy**2 * between).sum(1, keepdim=True) - 2 * (noisy * between) @ images.T
        log_weights -= (square + between @ (images**2).T) / (2 * deviation**2)
    weights = log_weights.softmax(1)
    # A 0 or 1 is either noise, and the estimate is the training image's pixel, or it is the clean pixel itself.
    mean = between * noisy
    for value, mask in ((0.0, pepper), (1.0, salt)):
        noise = level / (level + near[value])
        mean += mask * (weights @ (noise * images + (1 - noise) * value))
    return mean


def _measure(runs: Runs) -> dict[str, float]:
    values: dict[str, float] = {}
    for level in LEVELS:
        stage = runs[_name(level)]
        mean = stage.cached_metric("mean_image_mse", mean_image_mse)
        mse = {"network": stage.test_metrics()["test/mse"]}
        mse["posterior"] = stage.cached_metric("posterior_mse", _posterior_mse)
        mse["input"] = stage.cached_metric("input_mse", _input_mse)
        values |= {f"{what}_{_name(level)}": each / mean for what, each in mse.items()}
    return values


def _name(level: float) -> str:
    return f"{100 * level:02.0f}"


def _input_mse(stage: TrainedStage) -> float:
    split = test_split(stage.data())
    return float((split.x - split.clean).square().mean())


def _posterior_mse(stage: TrainedStage) -> float:
    split = test_split(stage.data())
    return float((_denoise(stage, split.x) - split.clean).square().mean())


def _denoise(stage: TrainedStage, noisy: Tensor) -> Tensor:
    """The posterior means of noisy images (B, C, H, W), with the deviation that is best for validation images."""
    data = stage.data()
    level, images = data.level, train_split(data).clean.flatten(1)
    batch = next(iter(data.val_dataloader()))
    given, clean = batch.x[:VALIDATED].flatten(1), batch.clean[:VALIDATED].flatten(1)
    errors = [float((posterior_mean(given, images, level, d) - clean).square().mean()) for d in DEVIATIONS]
    best = DEVIATIONS[int(np.argmin(errors))]
    return posterior_mean(noisy.flatten(1), images, level, best).view_as(noisy)


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    figure = new_figure(7.5, 4.2, "Salt-and-pepper noise on Fashion-MNIST: how much can be restored")
    axes = figure.subplots()
    labels = {
        "network": "autoencoder 784-256-784 (Yaramsetty)",
        "posterior": "posterior mean over the training images",
        "input": "the noisy image itself",
    }
    for colour, (what, label) in zip(COLOURS, labels.items(), strict=False):
        points = [summaries[f"{what}_{_name(level)}"] for level in LEVELS]
        means, intervals = [point.mean for point in points], [point.interval or 0.0 for point in points]
        axes.errorbar(LEVELS, means, yerr=intervals, color=colour, marker="o", capsize=3, label=label)
    axes.axhline(
        1, color="#222222", linewidth=1, linestyle="--", label="mean training image, without any information"
    )
    axes.set(
        xlabel="noise: probability of salt, and of pepper", ylabel="squared error, % of that of the mean image"
    )
    axes.set_yscale("log")
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["10", "20", "50", "100", "200", "500"])
    axes.minorticks_off()
    finish(axes)
    drawn = {"error": figure}
    rows: dict[str, NDArray[np.float32]] = {}
    for level in (0.1, 0.3, 0.45):
        stage = seeds[0][_name(level)]
        split = one_per_class([test_split(stage.data())])
        rows.setdefault("original", split.clean.numpy())
        rows[f"noise {level:g}"] = split.x.numpy()
        rows[f"autoencoder, {level:g}"] = predict(stage.model(), split.x).numpy()
        rows[f"posterior mean, {level:g}"] = _denoise(stage, split.x).numpy()
    return drawn | {"images": image_rows(rows, "Unseen garments restored")}


DENOISER = Experiment(
    "findings/denoiser",
    "how good a denoiser can be: empirical Bayes beside Yaramsetty's autoencoders",
    {
        _name(level): Stage("yaramsetty/denoising", ("--data.noise", str(level), "--data.test_noise", str(level)))
        for level in LEVELS
    },
    _measure,
    (
        Claim("error of the autoencoder at noise 0.1, above that of the posterior mean",
              "network_10", above("posterior_10")),
        Claim("error of the autoencoder at noise 0.3, above that of the posterior mean",
              "network_30", above("posterior_30")),
        Claim("error of the autoencoder at noise 0.4", "network_40"),
        Claim("error of the posterior mean at noise 0.4", "posterior_40"),
        Claim("error of the posterior mean at noise 0.1", "posterior_10"),
        Claim("error of the posterior mean at noise 0.3", "posterior_30"),
    ),
    _draw,
    "",
    {"quick": 7, "full": 7},
    "With salt and pepper at 0.1, 0.3 and 0.4, the squared error of Yaramsetty's autoencoder is"
    " {network_10:.0%}, {network_30:.0%} and {network_40:.0%} of that of the mean training image. The posterior"
    " mean over the 6,000 training images has {posterior_10:.0%}, {posterior_30:.0%} and {posterior_40:.0%}, so a"
    " much better denoiser is possible. At 0.5 every pixel is replaced: no information is left, and the posterior"
    " mean is the mean training image.",
)  # fmt: skip
