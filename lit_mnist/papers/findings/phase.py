"""Where training works: accuracy over learning rate and momentum, of which Zhang's failure is one point.

With momentum m the gradients of some 1 / (1 - m) steps add up. If nothing else counted, only the long step
lr / (1 - m) would decide whether training works, and the boundary of the settings that work would be a line
lr ~ (1 - m)^1. For a quadratic loss theory says otherwise: the largest stable rate grows from 2 / L to 4 / L as m
goes from 0 to 1, L being the largest curvature, and does not shrink at all: an exponent of about 0. We measure the
exponent.

All 144 settings of an input are trained at once, as one stack of networks with the same initial weights and the
same batches. To be affordable the network is 98-100-100-10, a tenth as wide as Zhang's, and training takes 1,000
of the 3,000 steps.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from lit_mnist.data.randomness import keyed_generator
from lit_mnist.models import Autoencoder
from lit_mnist.papers.findings.momentum import BATCH, load_images
from lit_mnist.papers.report.claims import Claim, above, at_most, below, within
from lit_mnist.papers.report.drawing import new_figure
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import TrainedStage, encode, train_split
from lit_mnist.papers.zhang import ENCODER, TWICE_CHANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, WIDTH = 1000, 100
RATES = tuple(0.05 * 10 ** (i / 4) for i in range(-6, 6))
"""Learning rates, four to a decade."""
DECAYS = tuple(10 ** (-i / 4) for i in range(12))
"""1 - momentum, four to a decade."""
ROWS = {"09": 4, "099": 8}
"""The indices of momentum 0.9 and 0.99 in `DECAYS`."""
PAPERS = (ROWS["099"], 6)
"""The indices of the paper's setting in `DECAYS` and `RATES`."""
INPUTS = {"codes": "codes", "standardised": "codes, standardised", "pixels": "raw pixels"}
WORKS = 0.5
"""The lowest accuracy at which a setting counts as working."""


def train_grid(
    train: tuple[Tensor, Tensor], probe: tuple[Tensor, Tensor], seed: int, steps: int = STEPS
) -> Tensor:
    """Train a network D-100-100-10 with SGD at every learning rate and momentum of the grid, all at once.

    Args:
        train: Inputs (N, D) and labels (N,).
        probe: Inputs and labels of the test images.
        seed: Seed of the initial weights and the order of the batches, which all settings share.
        steps: Number of steps.

    Returns:
        The accuracy (DECAYS, RATES) of each setting. If its weights are no longer finite, that is chance level.

    """
    inputs, labels = train
    count, generator = len(RATES) * len(DECAYS), keyed_generator(seed, "phase")
    parameters: list[Tensor] = []
    for i, (fan_in, fan_out) in enumerate(((inputs.shape[1], WIDTH), (WIDTH, WIDTH), (WIDTH, 10))):
        # Distributed as in torch.nn.Linear. The first layers have the same input, so their weights form one
        # matrix: that is one large product instead of 144 small ones.
        layer = torch.empty(fan_in + 1, fan_out).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layer = layer.repeat(1, count) if i == 0 else layer.repeat(count, 1, 1)
        parameters += [layer.narrow(-2, 0, fan_in).clone(), layer.narrow(-2, fan_in, 1).clone()]
    velocities = [torch.zeros_like(parameter.requires_grad_()) for parameter in parameters]
    rate = torch.tensor(RATES).repeat(len(DECAYS))
    momentum = (1 - torch.tensor(DECAYS)).repeat_interleave(len(RATES))

    def classify(batch: Tensor) -> Tensor:
        w1, b1, w2, b2, w3, b3 = parameters
        hidden = torch.addmm(b1, batch, w1).relu().view(len(batch), count, WIDTH).transpose(0, 1)
        return torch.baddbmm(b3, torch.baddbmm(b2, hidden, w2).relu(), w3)

    epoch, order = 0, torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(inputs), generator=keyed_generator(seed, "phase", epoch))
            epoch += 1
        indices, order = order[:BATCH], order[BATCH:]
        logits = classify(inputs[indices])
        # Summed over the settings, so that each setting has the gradient of its own mean loss.
        loss = cross_entropy(logits.flatten(0, 1), labels[indices].repeat(count), reduction="sum") / len(indices)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for i, (parameter, velocity, gradient) in enumerate(
                zip(parameters, velocities, gradients, strict=True)
            ):
                lr, m = (
                    each.repeat_interleave(WIDTH) if i < 2 else each.view(-1, 1, 1) for each in (rate, momentum)
                )
                parameter.addcmul_(velocity.mul_(m).add_(gradient), lr, value=-1)
    with torch.inference_mode():
        right = classify(probe[0]).argmax(2) == probe[1]
    return right.float().mean(1).view(len(DECAYS), len(RATES))


def find_boundary(accuracy: NDArray[np.float64], works: float = WORKS) -> NDArray[np.float64]:
    """The decimal logarithm of the largest learning rate that works at each momentum, (DECAYS,).

    It is interpolated between the last rate with an accuracy of at least `works` and the next one. NaN if no rate
    works, or if the largest one does.

    Args:
        accuracy: (DECAYS, RATES).
        works: The lowest accuracy at which a setting counts as working.

    """
    found = np.full(len(accuracy), np.nan)
    logs = np.log10(RATES)
    for i, row in enumerate(accuracy):
        working = np.flatnonzero(row >= works)
        if len(working) and (last := working[-1]) < len(row) - 1:
            share = (row[last] - works) / (row[last] - row[last + 1])
            found[i] = logs[last] + share * (logs[last + 1] - logs[last])
    return found


def fit_exponents(
    cells: Mapping[str, NDArray[np.float64]], first: int = 0, works: float = WORKS
) -> dict[str, float]:
    """The exponent p of the largest rate that works ~ (1 - m)^p for each input, by least squares.

    Only momenta at which the largest rate of every input is known are used, so that all exponents are for the same
    range. NaN if there are fewer than two.

    Args:
        cells: The accuracies (DECAYS, RATES) by input.
        first: Index of the first momentum that is used.
        works: The lowest accuracy at which a setting counts as working.

    """
    boundaries = np.array([find_boundary(each, works)[first:] for each in cells.values()])
    known = np.isfinite(boundaries).all(0)
    if known.sum() < 2:
        return dict.fromkeys(cells, math.nan)
    slopes = np.polyfit(np.log10(DECAYS)[first:][known], boundaries[:, known].T, 1)[0]
    return dict(zip(cells, slopes.tolist(), strict=True))


def _measure(runs: Runs) -> dict[str, float]:
    stage = runs["autoencoder"]
    values: dict[str, float] = {}
    cells: dict[str, NDArray[np.float64]] = {}
    for name in INPUTS:
        cells[name] = np.array(stage.cached_json(f"phase.{name}", partial(_train_on, name=name)))
        values |= {f"{name}_{i}_{j}": float(each) for (i, j), each in np.ndenumerate(cells[name])}
        values[f"paper_{name}"] = float(cells[name][PAPERS])
    values |= {f"exponent_{name}": slope for name, slope in fit_exponents(cells).items()}
    # How much the exponents depend on the range of momentum, and on what counts as working.
    values |= {f"high_{name}": slope for name, slope in fit_exponents(cells, first=ROWS["09"]).items()}
    values |= {f"strict_{name}": slope for name, slope in fit_exponents(cells, works=0.8).items()}
    limits = {name: find_boundary(each) for name, each in cells.items()}
    for momentum, row in ROWS.items():
        values |= {f"limit_{name}_{momentum}": float(10 ** limits[name][row]) for name in INPUTS}
        values[f"gain_{momentum}"] = float(limits["standardised"][row] - limits["codes"][row])
    return values


def _train_on(stage: TrainedStage, name: str) -> list[list[float]]:
    model, data = stage.model(), load_images(stage)
    assert isinstance(model, Autoencoder)
    splits = [train_split(data), next(iter(data.val_dataloader()))]
    inputs = [split.clean.flatten(1) for split in splits]
    if name != "pixels":
        inputs = [torch.from_numpy(encode(model, split.clean)) for split in splits]
    if name == "standardised":
        mean, scale = inputs[0].mean(0), inputs[0].std(0)
        inputs = [(each - mean) / scale for each in inputs]
    train, probe = ((each, split.y) for each, split in zip(inputs, splits, strict=True))
    accuracies: list[list[float]] = train_grid(train, probe, data.seed).double().tolist()
    return [[round(value, 4) for value in row] for row in accuracies]


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    figure = new_figure(
        13, 4.9, "Learning rate and momentum: which settings train a network D-100-100-10 on MNIST"
    )
    panels = figure.subplots(1, len(INPUTS), sharex=True, sharey=True)
    edges = [[10 ** (k / 4 - 1 / 8) for k in range(len(values) + 1)] for values in (RATES, DECAYS)]
    horizontal, vertical = [RATES[0] * edge for edge in edges[0]], [1 / edge for edge in edges[1]]
    for axes, (name, of) in zip(panels, INPUTS.items(), strict=True):
        means = np.array(
            [[summaries[f"{name}_{i}_{j}"].mean for j in range(len(RATES))] for i in range(len(DECAYS))]
        )
        axes.pcolormesh(horizontal, vertical, means, vmin=0.1, vmax=1, cmap="viridis")
        for step in (0.05, 0.5, 5, 50):
            label = "lr / (1 − m) is 0.05, 0.5, 5, 50" if step == 5 else None
            axes.plot(
                [step * d for d in vertical], vertical, color="white", linewidth=1, linestyle=":", label=label
            )
        axes.plot(10 ** find_boundary(means), DECAYS, color="#D55E00", linewidth=2.5, label="accuracy 50 %")
        star = {"marker": "*", "s": 170, "color": "white", "edgecolor": "black", "zorder": 3}
        axes.scatter(RATES[PAPERS[1]], DECAYS[PAPERS[0]], **star, label="Zhang: 0.05 and 0.99")
        exponent = summaries[f"exponent_{name}"]
        axes.set_title(f"{of}: largest rate ~ (1 − m)$^{{{exponent.mean:.2f}}}$", fontsize=10)
        axes.set(xscale="log", yscale="log", xlabel="learning rate")
        axes.set(xlim=(horizontal[0], horizontal[-1]), ylim=(vertical[0], vertical[-1]))
        axes.set_yticks([1, 0.1, 0.01], ["0", "0.9", "0.99"])
    panels[0].set_ylabel("momentum m, on the scale of log(1 − m)")
    panels[0].legend(loc="upper right", fontsize=8, facecolor="#666666", labelcolor="white")
    bar = figure.colorbar(panels[0].collections[0], ax=panels, label="validation accuracy after 1,000 steps, %")
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    return {"phase": figure}


COLLAPSE = (
    "over the 2.25 decades of 1 - m in which the largest rate of every input is known, an exponent off by 0.25"
    " moves the rate by a factor of 3.7"
)

PHASE = Experiment(
    "findings/phase",
    "which learning rates and momenta work (Zhang, section 3.3)",
    {"autoencoder": ENCODER},
    _measure,
    (
        Claim("the largest rate that works is nearly proportional to 1 - m on standardised codes: exponent p",
              "exponent_standardised", within(1, 0.25), margin=COLLAPSE),
        Claim("the same for raw pixels", "exponent_pixels", within(1, 0.25), margin=COLLAPSE),
        Claim("not on the codes as they are: p is smaller than for standardised codes",
              "exponent_codes", below("exponent_standardised")),
        *(
            Claim(f"p for {label}, {how}", f"{variant}_{name}")
            for variant, how in (("high", "with momentum 0.9 and more"), ("strict", "if 80 % count as working"))
            for name, label in INPUTS.items()
        ),
        Claim("standardising raises the largest rate more with momentum 0.9 than with 0.99; decades with 0.9",
              "gain_09", above("gain_099")),
        Claim("decades with 0.99", "gain_099"),
        *(
            Claim(f"the paper's 0.05 and 0.99 fails in this network too: accuracy on {label}", f"paper_{name}",
                  at_most(0.2), percent=True, margin=TWICE_CHANCE)
            for name, label in INPUTS.items()
        ),
    ),
    _draw,
    "",
    {"quick": 10, "full": 10},
    "The largest learning rate that works is proportional to (1 - m)^{exponent_pixels:.2f} on raw pixels and (1"
    " - m)^{exponent_standardised:.2f} on standardised codes, where m is the momentum; an exponent of 1 would"
    " mean that only lr / (1 - m) matters. On the original codes the exponent is {exponent_codes:.2f}"
    " ({high_codes:.2f} with momentum 0.9 and more): the limit"
    " is {limit_codes_09:.2f} with momentum 0.9 and {limit_codes_099:.3f} with 0.99, and on standardised codes"
    " {limit_standardised_09:.2f} and {limit_standardised_099:.3f}. Zhang's 0.05 and 0.99 give {paper_codes:.0%}"
    " on the codes, {paper_standardised:.0%} on standardised codes and {paper_pixels:.0%} on raw pixels, in a"
    " network with a tenth of the paper's width.",
)  # fmt: skip
