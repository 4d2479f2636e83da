"""Why momentum 0.99 fails on the autoencoder's features, which Zhang leaves open (section 4).

Zhang's classifier 98-1000-1000-10 is trained on the codes of 784-98-784 as in `zhang/feature_classifier`, in a
plain loop that counts on the way the ReLUs that are dead: 0 for each of 1,000 validation images. The codes are
outputs of sigmoids, all of them positive: their mean is three times as long as their deviations from it. The
hypothesis was: along the mean all gradients of a neuron's weights agree, and with momentum 0.99 a hundred of them
add up, until the neuron is below 0 for every image and never learns again.

Subtracting the mean also makes the codes shorter, and so the steps smaller. Two controls separate the two: codes
that keep their mean and are shrunk to that length, and codes without their mean that are lengthened to the old
one. In another variant the ReLUs have a slope below 0, so that no neuron can die; further ones are the usual
remedies: standardised codes, dampening, clipped gradients, and a warm-up. According to the controls, dead
neurons of the first layer are not the cause by themselves: with shrunk codes there are almost as many, and the
classifier learns something; with lengthened codes there are none, and it learns nothing, since the second layer is
dead. Of the remedies, the two that shorten every step work, dampening and clipping.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lit_mnist.data import ImageDataModule
from lit_mnist.data.randomness import keyed_generator, keyed_seed
from lit_mnist.models import Autoencoder
from lit_mnist.papers.report.claims import Claim, Rule, at_least, at_most
from lit_mnist.papers.report.drawing import COLOURS, finish, new_figure
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import TrainedStage, encode, test_split, train_split
from lit_mnist.papers.zhang import ENCODER, TWICE_CHANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, IMAGES, RATE = 3000, 64, 18_000, 0.05
"""As in `zhang/feature_classifier`."""
PROBES = (5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 300, 500, 800, 1200, 1700, 2300, 3000)
"""Steps after which the traces are measured."""
REPAIRED = "momentum 0.9 reached 96 % before: what stays below 90 % is not repaired"
PROBED = 1000
"""Number of validation images on which the traces are measured."""
TRACES = {
    "acc": "accuracy, %",
    "dead": "dead ReLUs,\nlayer 1, %",
    "dead2": "dead ReLUs,\nlayer 2, %",
    "velocity": "norm of\nthe step",
}


@dataclass(frozen=True)
class Variant:
    """One way to train the classifier; the default is the paper's."""

    label: str
    momentum: float = 0.99
    centred: bool = False
    """Subtract the mean training code."""
    small: bool | None = None
    """True to scale the input to the length (root mean square) of the codes' deviations from their mean, False to
    scale it to the length of the codes themselves, None for no scaling."""
    slope: float = 0.0
    """Slope of the ReLUs below 0."""
    scaled: bool = False
    """Divide each number of the code by its standard deviation over the training images."""
    dampening: float = 0.0
    """Share by which a gradient is reduced before it is added to the momentum."""
    clip: float | None = None
    """Largest norm of the gradient; None for no limit."""
    warmup: int = 0
    """Number of first steps in which the learning rate grows linearly to its value."""

    def prepare(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (D,) to subtract from codes (N, D), or zeros, and the factor (D,) or () that scales them."""
        mean = codes.mean(0)
        shift = mean if self.centred else torch.zeros_like(mean)
        if self.scaled:
            return shift, 1 / codes.std(0)
        if self.small is None:
            return shift, torch.tensor(1.0)
        length, wanted = codes - shift, codes - mean if self.small else codes
        return shift, (wanted.square().sum() / length.square().sum()).sqrt()


VARIANTS = {
    "paper": Variant("paper: 0.99"),
    "momentum_09": Variant("momentum 0.9", momentum=0.9),
    "centred": Variant("0.99, mean\nsubtracted", centred=True),
    "shrunk": Variant("0.99, shrunk\nto that length", small=True),
    "enlarged": Variant("0.99, mean\nsubtracted,\nold length", centred=True, small=False),
    "leaky": Variant("0.99, leaky\nReLU 0.01", slope=0.01),
    "standardised": Variant("0.99,\nstandardised", centred=True, scaled=True),
    "dampened": Variant("0.99,\ndampening 0.99", dampening=0.99),
    "clipped": Variant("0.99, gradient\nclipped to 0.1", clip=0.1),
    "warm_up": Variant("0.99, warm-up\nof 281 steps", warmup=281),  # an epoch
}
TRACED = 6
"""Number of variants, the first ones, whose traces are drawn."""


def train_variant(
    variant: Variant, train: tuple[Tensor, Tensor], probe: tuple[Tensor, Tensor], seed: int, steps: int = STEPS
) -> tuple[nn.Sequential, tuple[Tensor, Tensor], dict[str, list[float]]]:
    """Train the classifier on codes and measure its traces.

    Args:
        variant: The way to train.
        train: Codes (N, D) and labels (N,).
        probe: Codes and labels of the images on which the traces are measured.
        seed: Seed of the initial weights and the order of the images, which all variants share.
        steps: Number of steps.

    Returns:
        The network, the result of `Variant.prepare` for its input, and `TRACES` at `PROBES`. Training ends when
        the loss is no longer finite; the traces then keep their last values, and `diverged` is [1.0], else [0.0].

    """
    codes, labels = train
    shift, factor = variant.prepare(codes)
    codes = (codes - shift) * factor
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "momentum"))
        first = (nn.Linear(codes.shape[1], 1000), nn.LeakyReLU(variant.slope))
        network = nn.Sequential(*first, nn.Linear(1000, 1000), nn.LeakyReLU(variant.slope), nn.Linear(1000, 10))
    optimizer = torch.optim.SGD(
        network.parameters(), lr=RATE, momentum=variant.momentum, dampening=variant.dampening, fused=True
    )
    traces: dict[str, list[float]] = {name: [] for name in TRACES}
    epoch, order = 0, torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if not len(order):
            order = torch.randperm(len(codes), generator=keyed_generator(seed, "momentum", epoch))
            epoch += 1
        indices, order = order[:BATCH], order[BATCH:]
        loss = nn.functional.cross_entropy(network(codes[indices]), labels[indices])
        if not loss.isfinite():
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if variant.clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), variant.clip)
        if step <= variant.warmup:
            optimizer.param_groups[0]["lr"] = RATE * step / variant.warmup
        optimizer.step()
        if step in PROBES:
            for name, value in _trace(network, optimizer, (probe[0] - shift) * factor, probe[1]).items():
                traces[name].append(value)
    due = sum(probe_step <= steps for probe_step in PROBES)
    for values in traces.values():
        values += [values[-1] if values else 0.0] * (due - len(values))
    return network, (shift, factor), traces | {"diverged": [float(not loss.isfinite())]}


@torch.inference_mode()
def _trace(
    network: nn.Sequential, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> dict[str, float]:
    first = network[:2](inputs)
    second = network[2:4](first)
    buffers = [state["momentum_buffer"].square().sum() for state in optimizer.state.values()]
    return {
        "acc": float((network[4](second).argmax(1) == labels).float().mean()),
        "dead": float((first <= 0).all(0).float().mean()),
        "dead2": float((second <= 0).all(0).float().mean()),
        "velocity": optimizer.param_groups[0]["lr"] * float(torch.stack(buffers).sum().sqrt()),
    }


def _measure(runs: Runs) -> dict[str, float]:
    values = {}
    for name, variant in VARIANTS.items():
        found = runs["autoencoder"].cached_json(f"variant.{name}", partial(_train_on_codes, variant=variant))
        values[f"test_{name}"] = found.pop("test")
        (values[f"diverged_{name}"],) = found.pop("diverged")
        for trace, points in found.items():
            values |= {f"{trace}_{name}_{step}": value for step, value in zip(PROBES, points, strict=True)}
    return values


def load_images(stage: TrainedStage) -> ImageDataModule:
    """The training and test images of the paper's classifiers."""
    data = stage.rebuild("--data.train_size", str(IMAGES)).datamodule
    data.setup("fit")
    data.setup("test")
    return data


def _train_on_codes(stage: TrainedStage, variant: Variant) -> dict[str, float | list[float]]:
    model = stage.model()
    assert isinstance(model, Autoencoder)
    data = load_images(stage)
    splits = [train_split(data), next(iter(data.val_dataloader())), test_split(data)]
    train, probe, test = ((torch.from_numpy(encode(model, split.clean)), split.y) for split in splits)
    network, (shift, factor), traces = train_variant(
        variant, train, (probe[0][:PROBED], probe[1][:PROBED]), data.seed
    )
    with torch.inference_mode():
        accuracy = float((network((test[0] - shift) * factor).argmax(1) == test[1]).float().mean())
    short = {name: [float(f"{value:.4g}") for value in values] for name, values in traces.items()}
    return {"test": accuracy, **short}


def before_divergence(name: str, summaries: Summaries) -> int:
    """The number of `PROBES` before the first seed of a variant diverged; then its traces are constant."""
    traces = np.array([[summaries[f"{trace}_{name}_{step}"].values for step in PROBES] for trace in TRACES])
    fewest = len(PROBES)
    for seed, diverged in enumerate(summaries[f"diverged_{name}"].values):
        if diverged:
            before, after = traces[:, :-1, seed], traces[:, 1:, seed]
            # Weights that overflow at a step whose traces are measured leave NaN in them.
            changes = ((before != after) & ~(np.isnan(before) & np.isnan(after))).any(0)
            fewest = min(fewest, int(changes.nonzero()[0].max(initial=-1)) + 2)
    return fewest


def _draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    figure = new_figure(12, 8, "Momentum 0.99 on sigmoid codes: what repairs it and what does not")
    grid = figure.add_gridspec(len(TRACES), 2, width_ratios=(1.6, 1))
    for row, (trace, ylabel) in enumerate(TRACES.items()):
        axes = figure.add_subplot(grid[row, 0])
        for colour, (name, variant) in zip(COLOURS[:TRACED], VARIANTS.items(), strict=False):
            if trace.startswith("dead") and variant.slope:
                continue  # such a neuron is never dead
            points = [summaries[f"{trace}_{name}_{step}"] for step in PROBES[: before_divergence(name, summaries)]]
            steps = PROBES[: len(points)]
            axes.plot(steps, [point.mean for point in points], color=colour)
            lows, highs = ([pick(point.values) for point in points] for pick in (min, max))
            axes.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.set(xscale="log", ylabel=ylabel)
        axes.set_yscale("log" if trace == "velocity" else "linear")
        finish(axes, percent=ylabel.endswith("%"), legend=False)
    axes.set_xlabel("optimizer step; shaded: lowest to highest seed; a line ends where a seed diverges")
    axes = figure.add_subplot(grid[:, 1])
    colours = [*COLOURS[:TRACED], *["#999999"] * (len(VARIANTS) - TRACED)]
    for i, (colour, name) in enumerate(zip(colours, VARIANTS, strict=True)):
        accuracy = summaries[f"test_{name}"]
        axes.barh(i, accuracy.mean, xerr=accuracy.interval, capsize=4, color=colour, alpha=0.75, height=0.65)
        axes.scatter(accuracy.values, [i] * len(accuracy.values), color="#222222", s=14, zorder=3)
    axes.axvline(0.1, color="#222222", linewidth=1, linestyle="--", label="chance")
    axes.set_yticks(range(len(VARIANTS)), [variant.label for variant in VARIANTS.values()])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy at the end, %\n(colours as left; grey: no traces)", xlim=(0, 1))
    finish(axes)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    return {"momentum": figure}


DEAD_LABELS = {
    "paper": "the paper's settings",
    "momentum_09": "momentum 0.9",
    "centred": "centred codes",
    "shrunk": "shrunk codes",
    "enlarged": "centred codes of the old length",
}


def _accuracy(text: str, variant: str, rule: Rule | None = None) -> Claim:
    return Claim(text, f"test_{variant}", rule, percent=True, margin=REPAIRED if rule else "")


MOMENTUM = Experiment(
    "findings/momentum",
    "why momentum 0.99 fails on the autoencoder's features (Zhang, section 3.3)",
    {"autoencoder": ENCODER},
    _measure,
    (
        Claim("momentum 0.99 fails: test accuracy", "test_paper", at_most(0.2), percent=True, margin=TWICE_CHANCE),
        _accuracy("momentum 0.9 works", "momentum_09", at_least(0.9)),
        _accuracy("0.99 works on codes from which their mean is subtracted", "centred", at_least(0.9)),
        _accuracy("it does not on codes that are only as short as those", "shrunk", at_most(0.9)),
        _accuracy("it does not on codes without their mean that are as long as before", "enlarged", at_most(0.9)),
        _accuracy("momentum 0.99 with leaky ReLUs, which cannot die (chance if it has diverged)", "leaky"),
        Claim("share of those trainings that diverge: a loss that is not finite", "diverged_leaky", percent=True),
        _accuracy("momentum 0.99 on standardised codes", "standardised"),
        _accuracy("momentum 0.99 with dampening 0.99, which makes a step a moving average of the gradients",
                  "dampened"),
        _accuracy("momentum 0.99 with gradients clipped to a norm of 0.1", "clipped"),
        _accuracy("momentum 0.99 with a learning rate that grows over the first epoch", "warm_up"),
        Claim("with 0.99 the ReLUs of the first layer die", "dead_paper_3000", at_least(0.9), percent=True,
              margin="with nine of ten neurons dead, the codes hardly reach the second layer"),
        Claim("most of them live without the mean", "dead_centred_3000", at_most(0.5), percent=True,
              margin="half of the neurons"),
        *(
            Claim(f"dead ReLUs of the {layer} layer with {label}", f"{trace}_{name}_3000", percent=True)
            for trace, layer in (("dead", "first"), ("dead2", "second"))
            for name, label in DEAD_LABELS.items()
            if f"{trace}_{name}" not in ("dead_paper", "dead_centred")  # these have a rule, above
        ),
    ),
    _draw,
    "",
    {"quick": 10, "full": 10},
    "With momentum 0.99 the classifier reaches {test_paper:.1%}. Subtracting the mean code, which also makes the"
    " codes shorter, repairs it: {test_centred:.1%}, beside {test_momentum_09:.1%} with momentum 0.9. Neither is"
    " enough alone: codes that are as short but keep their mean reach {test_shrunk:.1%}, codes without their mean"
    " that are as long as before {test_enlarged:.1%}. In the failed trainings ReLUs are dead, but not always in"
    " the same layer: {dead_paper_3000:.1%} of the first and {dead2_paper_3000:.1%} of the second with the paper's"
    " settings, {dead_shrunk_3000:.1%} and {dead2_shrunk_3000:.1%} with the shrunk codes,"
    " {dead_enlarged_3000:.1%} and {dead2_enlarged_3000:.1%} with the lengthened ones. So dead ReLUs of the first"
    " layer alone neither explain the failure nor are necessary for it. Leaky ReLUs diverge with"
    " {diverged_leaky:.0%} of the seeds. Of the usual remedies, standardised codes reach {test_standardised:.1%},"
    " dampening {test_dampened:.1%}, clipped gradients {test_clipped:.1%}, and a warm-up {test_warm_up:.1%}.",
)  # fmt: skip
