"""Yaramsetty et al., "Image Reconstruction using Denoising Autoencoder … Stacked Autoencoders" (Fashion-MNIST)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_mnist.papers.report.claims import AtLeast, AtMost, Claim, Within
from lit_mnist.papers.report.drawing import bars
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.probes import mean_image_mse, nearest_neighbours
from lit_mnist.papers.report.trained import Trained, one_per_class, reconstruct, test_split, train_split
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = {"01_01": (0.1, 0.1), "03_05": (0.3, 0.5), "05_03": (0.5, 0.3), "05_05": (0.5, 0.5)}
"""Noise in training and in testing."""
MARGINS = {1: 0.05, 5: 0.03, 10: 0.03}
"""By labels a class: a draw of one label is worth 4 to 5 points more or less than another."""
TEN_LABELS = 0.767
"""Of which of the stacks, the paper does not say."""

STACKS: dict[tuple[int, ...], dict[tuple[float, float], dict[int, float]]] = {
    (500, 200, 100): {
        (1, 0): {1: 0.5117, 5: 0.6303},
        (0.1, 0.001): {1: 0.5117, 5: 0.6470},
        (0.5, 0.00001): {1: 0.5100, 5: 0.6325},
    },
    (300, 100): {
        (1, 0): {1: 0.5103, 5: 0.6414},
        (0.1, 0.001): {1: 0.5130, 5: 0.6396},
        (0.5, 0.00001): {1: 0.5190, 5: 0.6525},
    },
    (100,): {
        (0.1, 0): {1: 0.5430, 5: 0.6933},
        (0.5, 0.001): {1: 0.5503, 5: 0.7017},
        (1, 0.00001): {1: 0.5483, 5: 0.6983},
    },
}
"""The paper's accuracy by hidden sizes, (last layer's rate, the others'), and labels a class."""
COSTS = {(500, 200, 100): 255.973, (300, 100): 260.35, (100,): 313.08}
"""Of the first layer."""


def _measure_denoising(runs: Runs) -> dict[str, float]:
    mean = runs["01_01"].once("mean_image_mse", lambda: mean_image_mse(runs["01_01"].data()))
    values = {"mse_mean_image": mean}
    for name, run in runs.items():
        mse = run.tested()["test/mse"]
        values |= {f"mse_{name}": mse, f"explained_{name}": 1 - mse / mean, f"ratio_{name}": mse / mean}
        values[f"spread_{name}"] = run.once("spread", lambda run=run: _spread(run))  # type: ignore[misc]
    return values


def _spread(run: Trained) -> float:
    """How much reconstructions differ from each other, as a share of what the originals do: their variance."""
    split = test_split(run.data())
    made = reconstruct(run.model(), split.x)
    return float(made.var(0).mean() / split.clean.var(0).mean())


def _draw_denoising(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    runs = seeds[0]
    rows: dict[str, NDArray[np.float32]] = {}
    for name, (train, test) in CASES.items():
        split = one_per_class(test_split(runs[name].data()))
        rows.setdefault("original", split.clean.numpy())
        rows[f"noise {test:g}"] = split.x.numpy()
        rows[f"trained at {train:g}, tested at {test:g}"] = reconstruct(runs[name].model(), split.x).numpy()
    mean = train_split(runs["01_01"].data()).clean.mean(0, keepdim=True)
    rows["mean training image"] = mean.expand(10, -1, -1, -1).numpy()
    title = "Yaramsetty, figures 5 to 11: at noise 0.5 the best answer is the mean image"
    return {"figure_11": image_rows(rows, title)}


def _case(train: float, test: float) -> Stage:
    return Stage("yaramsetty/denoising", ("--data.noise", str(train), "--data.test_noise", str(test)))


def _stack(sizes: Sequence[int]) -> dict[str, Stage]:
    """The layers from the images up, each on the checkpoint of the one below."""
    layers: dict[str, Stage] = {}
    below: Stage | None = None
    for depth in range(1, len(sizes) + 1):
        flags = ["--model.hidden_sizes", str(list(sizes[:depth]))]
        if len(sizes) == 2 and depth == 2:
            flags += ["--trainer.max_steps", "1000"]
        below = Stage(
            f"yaramsetty/layer_{depth}", tuple(flags), source=below, source_flag="--model.below_checkpoint"
        )
        layers[f"layer_{depth}"] = below
    return layers


def _tuned(
    sizes: Sequence[int], below: Stage, rates: tuple[float, float], labels: int, choice: str = "random"
) -> Stage:
    flags = {
        "--model.hidden_sizes": list(sizes),
        "--model.lr": rates[0],
        "--model.encoder_lr": rates[1],
        "--data.train_per_class": labels,
        "--data.train_choice": choice,
        "--data.batch_size": 10 * labels,
    }
    return Stage("yaramsetty/finetune", tuple(str(part) for flag in flags.items() for part in flag), source=below)


def _tuning(rates: tuple[float, float], labels: int) -> str:
    return f"labels_{labels}_lr_{rates[0]:g}_{rates[1]:g}"


def _measure_stack(runs: Runs) -> dict[str, float]:
    values = {"cost": runs["layer_1"].tested()["test/loss"]}
    # The last checkpoint: the best one would be chosen by more labels than there are to be trained on.
    tuned = {name: run for name, run in runs.items() if not name.startswith("layer")}
    values |= {name: run.tested("last")["test/acc"] for name, run in tuned.items()}
    frozen = {name: value for name, value in values.items() if name.endswith("_0")}
    return values | {f"random_{name.split('_')[1]}": value for name, value in frozen.items()}


def _draw_stack(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    sizes = tuple(seeds[0][max(name for name in seeds[0] if name.startswith("layer"))].settings().model.hparams
                  ["hidden_sizes"])  # fmt: skip
    numbers = {_label(name): summaries[name] for name in seeds[0] if not name.startswith("layer")}
    papers = [value for row in STACKS[sizes].values() for value in row.values()]
    lines = {"paper, lowest and highest of 1 and 5 labels": min(papers), "": max(papers)}
    title = f"Yaramsetty: {'-'.join(map(str, sizes))}, fine-tuned with few labels"
    return {"accuracy": bars(numbers, title, "test accuracy, %", lines)}


def _label(name: str) -> str:
    kind, labels, *rates = name.split("_")
    return f"{labels} typical\na class" if kind == "typical" else f"{labels} a class\n{rates[1]}, {rates[2]}"


def _stacked(sizes: tuple[int, ...], table: Mapping[tuple[float, float], Mapping[int, float]]) -> Experiment:
    stages = _stack(sizes)
    below, claims = stages[f"layer_{len(sizes)}"], [Claim("cost of the first layer", "cost", AtMost(COSTS[sizes]),
                                                          COSTS[sizes])]  # fmt: skip
    first = next(iter(table))
    rows = [(rates, labels, value) for rates, row in table.items() for labels, value in row.items()]
    for rates, labels, value in [*rows, (first, 10, TEN_LABELS)]:
        name = _tuning(rates, labels)
        stages[name] = _tuned(sizes, below, rates, labels)
        text = f"{labels} a class, random ones, rates {rates[0]:g} and {rates[1]:g}"
        claims.append(Claim(text, name, AtLeast(value - MARGINS[labels]), value, percent=True))
    for labels in MARGINS:
        name = f"typical_{labels}"
        stages[name] = _tuned(sizes, below, first, labels, "typical")
        value = max([row[labels] for row in table.values() if labels in row], default=TEN_LABELS)
        text = f"{labels} a class, typical ones, rates {first[0]:g} and {first[1]:g}; the paper's best"
        claims.append(Claim(text, name, AtLeast(value), value, percent=True))
    name = "_".join(map(str, sizes))
    title = f"stacked autoencoders {'-'.join(map(str, sizes))}, tuned with few labels (tables I to IX)"
    return Experiment(
        f"yaramsetty/stacked_{name}", title, stages, _measure_stack, tuple(claims), _draw_stack, "",
        {"quick": 10, "full": 10},
        "Which images are labelled decides: with random ones {random_1:.1%}, {random_5:.1%} and {random_10:.1%}"
        " for 1, 5 and 10 a class on the frozen stack, with the typical ones {typical_1:.1%},"
        " {typical_5:.1%} and {typical_10:.1%}; the paper does not say which it took.",
    )  # fmt: skip


def _measure_baselines(runs: Runs) -> dict[str, float]:
    run = runs["cnn"]
    values = {"cnn": run.tested()["test/acc"]}
    for labels in (1, 5, 600):
        values[f"neighbours_{labels}"] = run.once(f"neighbours_{labels}", lambda n=labels: _neighbours(run, n))  # type: ignore[misc]
    return values


def _neighbours(run: Trained, labels: int) -> float:
    """Accuracy of the nearest neighbours among raw pixels; a single one where there is one label a class."""
    flags = ("--data.train_size", "null", "--data.train_per_class", str(labels), "--data.test_per_class", "60")
    data = run.settings(*flags).datamodule
    data.setup("fit")
    data.setup("test")
    train, test = train_split(data), test_split(data)
    pixels = [split.clean.flatten(1).numpy() for split in (train, test)]
    return nearest_neighbours(pixels[0], train.y.numpy(), pixels[1], test.y.numpy(), 1 if labels == 1 else 5)


def _draw_baselines(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    names = {"cnn": "CNN", "neighbours_1": "1 label\na class", "neighbours_5": "5 labels\na class",
             "neighbours_600": "600 labels\na class"}  # fmt: skip
    numbers = {label: summaries[name] for name, label in names.items()}
    lines = {"paper, CNN": 0.9343, "paper, neighbours": 0.554}
    return {"table_x": bars(numbers, "Yaramsetty, table X: CNN and nearest neighbours", "test accuracy, %", lines)}


EXPERIMENTS = (
    Experiment(
        "yaramsetty/denoising",
        "784-256-784 against salt and pepper (figures 5 to 11)",
        {name: _case(*noise) for name, noise in CASES.items()},
        _measure_denoising,
        (
            Claim("0.1 in training and test, clear: variance explained", "explained_01_01", AtLeast(0.7),
                  percent=True),
            Claim("0.3 in training, 0.5 in test, satisfactory: the same", "explained_03_05", AtLeast(0.3),
                  percent=True),
            Claim("trained at 0.5, tested at 0.3, all alike: spread of the answers", "spread_05_03", AtMost(0.05),
                  percent=True),
            Claim("trained and tested at 0.5, all alike: spread of the answers", "spread_05_05", AtMost(0.05),
                  percent=True),
            Claim("ours: at 0.5 the best answer is the mean image: error over its error", "ratio_05_05",
                  Within(1, 0.05)),
        ),
        _draw_denoising,
        "",
        {"quick": 4, "full": 4},
        "At noise 0.5 salt and pepper replaces every pixel and leaves no information: the error is"
        " {ratio_05_05:.3f} times that of the mean training image as the answer to everything. For the same"
        " reason nothing can be satisfactory at test noise 0.5: {ratio_03_05:.2f} times.",
    ),
    *(_stacked(sizes, table) for sizes, table in STACKS.items()),
    Experiment(
        "yaramsetty/baselines",
        "a convolutional classifier and nearest neighbours (table X)",
        {"cnn": Stage("yaramsetty/cnn", quick=("--trainer.max_epochs", "4"))},
        _measure_baselines,
        (
            Claim("CNN", "cnn", AtLeast(0.9343), 0.9343, percent=True),
            Claim("nearest neighbours, with 5 labels a class", "neighbours_5", Within(0.554, 0.05), 0.554,
                  percent=True),
            Claim("nearest neighbours, with 1 label a class", "neighbours_1", None, percent=True),
            Claim("nearest neighbours, with 600 labels a class", "neighbours_600", None, percent=True),
        ),
        _draw_baselines,
        "4 epochs instead of 30",
        {"quick": 10, "full": 90},
    ),
)  # fmt: skip
