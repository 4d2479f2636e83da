"""Yaramsetty, Gade and Adusumilli (Fashion-MNIST): denoising, stacked autoencoders, baselines.

"Image Reconstruction using Denoising Autoencoder and Classification of Fashion MNIST Data using Stacked
Autoencoders".
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_mnist.papers.report.claims import Claim, above, at_least, at_most, below, close_to, descending, within
from lit_mnist.papers.report.drawing import bars
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import (
    TrainedStage,
    mean_image_mse,
    nearest_neighbours,
    predict,
    test_split,
    train_split,
)
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.report import one_per_class
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE_CASES = {"01_01": (0.1, 0.1), "03_05": (0.3, 0.5), "05_03": (0.5, 0.3), "05_05": (0.5, 0.5)}
"""Noise in training and in testing."""
LABELS = (1, 5, 10)
"""Labelled images per class."""
UNNAMED = "the paper does not say which images were labelled, and their choice alone decides by several points"
ORACLE = "chosen among all training images by their labels, which few-label training does not have"
TEN_LABELS = 0.767
"""The paper's accuracy with 10 labels per class. It does not say with which of the stacks."""

ALIKE = "with 5 % of the variance between the originals, images of different classes look the same"

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
"""The paper's accuracies by hidden sizes, learning rates (last layer, other layers), and labels per class."""
COSTS = {(500, 200, 100): 255.973, (300, 100): 260.35, (100,): 313.08}
"""The paper's reconstruction cost of the first layer, by hidden sizes."""


def _measure_denoising(runs: Runs) -> dict[str, float]:
    mean = runs["01_01"].cached_metric("mean_image_mse", mean_image_mse)
    values = {"mse_mean_image": mean}
    for name, stage in runs.items():
        mse = stage.test_metrics()["test/mse"]
        values |= {f"mse_{name}": mse, f"explained_{name}": 1 - mse / mean, f"ratio_{name}": mse / mean}
        values[f"spread_{name}"] = stage.cached_metric("spread", _spread)
    return values


def _spread(stage: TrainedStage) -> float:
    """Variance between the reconstructions of different images, as a share of that between the originals."""
    split = test_split(stage.data())
    reconstructed = predict(stage.model(), split.x)
    return float(reconstructed.var(0).mean() / split.clean.var(0).mean())


def _draw_denoising(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    runs = seeds[0]
    rows: dict[str, NDArray[np.float32]] = {}
    for name, (train, test) in NOISE_CASES.items():
        split = one_per_class([test_split(runs[name].data())])
        rows.setdefault("original", split.clean.numpy())
        rows[f"noise {test:g}"] = split.x.numpy()
        rows[f"trained at {train:g}, tested at {test:g}"] = predict(runs[name].model(), split.x).numpy()
    mean = train_split(runs["01_01"].data()).clean.mean(0, keepdim=True)
    rows["mean training image"] = mean.expand(10, -1, -1, -1).numpy()
    title = "Yaramsetty, figures 5 to 11: at noise 0.5 the best answer is the mean image"
    return {"figure_11": image_rows(rows, title)}


Table = Mapping[tuple[float, float], Mapping[int, float]]
"""The paper's accuracies: by learning rates (last layer, others), then by labels per class."""


def _stack_experiment(sizes: tuple[int, ...], table: Table) -> Experiment:
    """The experiment of one stack: its layers from the images up, then every fine-tuning of the paper's tables."""
    return Experiment(
        f"yaramsetty/stacked_{'_'.join(map(str, sizes))}",
        f"stacked autoencoders {'-'.join(map(str, sizes))}, fine-tuned with few labels (tables I to IX)",
        _stack_stages(sizes, table), _measure_stack, tuple(_stack_claims(sizes, table)), _draw_stack, "",
        {"quick": 10, "full": 10},
        "The choice of the labelled images decides: chosen at random, 1, 5 and 10 per class on the frozen stack"
        " give {random_1:.1%}, {random_5:.1%} and {random_10:.1%}; typical ones give {typical_1:.1%},"
        " {typical_5:.1%} and {typical_10:.1%}. The paper does not say how it chose.",
    )  # fmt: skip


def _stack_rows(table: Table) -> list[tuple[tuple[float, float], int, float]]:
    """Rates, labels per class and accuracy of each entry of `table`, and of the paper's one for 10 labels."""
    rows = [(rates, labels, value) for rates, row in table.items() for labels, value in row.items()]
    return [*rows, (next(iter(table)), 10, TEN_LABELS)]


def _tuned_name(rates: tuple[float, float], labels: int) -> str:
    """The name of a fine-tuning's stage, and of its accuracy."""
    return f"labels_{labels}_lr_{rates[0]:g}_{rates[1]:g}"


def _stack_stages(sizes: tuple[int, ...], table: Table) -> dict[str, Stage]:
    """The layers, each on those below, the first one without momentum as well, and the fine-tunings."""
    stages: dict[str, Stage] = {}
    lower: Stage | None = None
    for depth in range(1, len(sizes) + 1):
        layer = ["--model.hidden_sizes", str(list(sizes[:depth]))]
        if len(sizes) == 2 and depth == 2:
            layer += ["--trainer.max_steps", "1000"]
        source_flag = "--model.below_checkpoint"
        lower = Stage(f"yaramsetty/layer_{depth}", tuple(layer), source=lower, source_flag=source_flag)
        stages[f"layer_{depth}"] = lower
    plain = ("--model.hidden_sizes", str(list(sizes[:1])), "--model.momentum", "0")
    stages["layer_1_plain"] = Stage("yaramsetty/layer_1", plain)

    def tuned(rates: tuple[float, float], labels: int, choice: str = "random") -> Stage:
        flags = {
            "--model.hidden_sizes": list(sizes),
            "--model.lr": rates[0],
            "--model.encoder_lr": rates[1],
            "--data.train_per_class": labels,
            "--data.train_choice": choice,
            "--data.batch_size": 10 * labels,
        }
        return Stage("yaramsetty/finetune", tuple(str(x) for flag in flags.items() for x in flag), source=lower)

    for rates, labels, _ in _stack_rows(table):
        stages[_tuned_name(rates, labels)] = tuned(rates, labels)
    for labels in LABELS:
        stages[f"typical_{labels}"] = tuned(next(iter(table)), labels, "typical")
    return stages


def _stack_claims(sizes: tuple[int, ...], table: Table) -> list[Claim]:
    """The claims about one stack: its cost, each accuracy of the tables, and how the accuracies compare."""
    cost, first = COSTS[sizes], next(iter(table))
    frozen = {labels: _tuned_name(first, labels) for labels in LABELS}
    claims = [
        Claim("cost of the first layer, at most the paper's", "cost", at_most(cost), cost),
        Claim("the same cost, trained without momentum", "cost_plain", within(cost, 0.02 * cost), cost,
              margin="2 % of the cost: the paper names neither optimiser nor batch size"),
    ]  # fmt: skip
    for rates, labels, value in _stack_rows(table):
        text = f"{_per_class(labels)}, rates {rates[0]:g} (last layer) and {rates[1]:g} (others)"
        claims.append(Claim(text, _tuned_name(rates, labels), paper=value, percent=True, not_comparable=UNNAMED))
    for labels in LABELS:
        value = max([row[labels] for row in table.values() if labels in row], default=TEN_LABELS)
        text = f"{_per_class(labels)}, nearest to the centres of k-means, beside the paper's best"
        claims.append(Claim(text, f"typical_{labels}", paper=value, percent=True, not_comparable=ORACLE))
    claims += [
        Claim(f"{_per_class(labels)}, frozen stack, on all 10,000 test images", f"all_{labels}", percent=True)
        for labels in LABELS
    ]
    claims.append(
        Claim("more labels help: 10 per class, above 5, above 1", frozen[10],
              descending(frozen[5], frozen[1]), percent=True)
    )  # fmt: skip
    claims += [
        Claim(f"the learning rates do not matter: 5 per class, {first} and {rates}", frozen[5],
              close_to(_tuned_name(rates, 5), 0.02), percent=True,
              margin="the paper's own accuracies with 5 labels differ by up to 1.7 points between rates")
        for rates in table if rates != first
    ]  # fmt: skip
    return claims


def _per_class(labels: int) -> str:
    return f"{labels} label{'' if labels == 1 else 's'} per class"


def _measure_stack(runs: Runs) -> dict[str, float]:
    values = {
        "cost": runs["layer_1"].test_metrics()["test/loss"],
        "cost_plain": runs["layer_1_plain"].test_metrics()["test/loss"],
    }
    # The last checkpoint: the best one is chosen with more labels than the few that training may see.
    tuned = {name: stage for name, stage in runs.items() if not name.startswith("layer")}
    values |= {name: stage.test_metrics("last")["test/acc"] for name, stage in tuned.items()}
    for name in tuned:
        if name.endswith("_0"):
            labels = name.split("_")[1]
            values[f"all_{labels}"] = runs[name].cached_metric("acc_all_test_images", _accuracy_on_all)
    # A rate of 0 below the last layer means that the stack is frozen.
    frozen = {name: value for name, value in values.items() if name.endswith("_0")}
    return values | {f"random_{name.split('_')[1]}": value for name, value in frozen.items()}


def _accuracy_on_all(stage: TrainedStage) -> float:
    """Accuracy of the last checkpoint on all 10,000 test images, instead of 600."""
    data = stage.rebuild("--data.test_per_class", "null").datamodule
    data.setup("test")
    split = test_split(data)
    return float((predict(stage.model("last"), split.x).argmax(1) == split.y).float().mean())


def _draw_stack(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    top = max(name for name in seeds[0] if name.startswith("layer") and name != "layer_1_plain")
    sizes = tuple(seeds[0][top].rebuild().model.hparams["hidden_sizes"])
    numbers = {}
    for name in seeds[0]:
        if not name.startswith("layer"):
            kind, labels, *rates = name.split("_")
            second_line = "per class" if kind == "typical" else f"{rates[1]}, {rates[2]}"
            first_line = f"{labels} typical" if kind == "typical" else f"{labels} per class"
            numbers[f"{first_line}\n{second_line}"] = summaries[name]
    papers = [value for row in STACKS[sizes].values() for value in row.values()]
    lines = {"paper, lowest and highest of 1 and 5 labels": min(papers), "": max(papers)}
    title = f"Yaramsetty: {'-'.join(map(str, sizes))}, fine-tuned with few labels"
    return {"accuracy": bars(numbers, title, "test accuracy, %", lines)}


def _measure_baselines(runs: Runs) -> dict[str, float]:
    stage = runs["cnn"]
    values = {"cnn": stage.test_metrics()["test/acc"]}
    for labels in (1, 5, 600):
        name = f"neighbours_{labels}"
        values[name] = stage.cached_metric(name, _neighbour_accuracy, labels)
    return values


def _neighbour_accuracy(stage: TrainedStage, labels: int) -> float:
    """Accuracy of 5 nearest neighbours among raw pixels; of the single nearest one with one label per class."""
    flags = ("--data.train_size", "null", "--data.train_per_class", str(labels), "--data.test_per_class", "60")
    data = stage.rebuild(*flags).datamodule
    data.setup("fit")
    data.setup("test")
    train, test = train_split(data), test_split(data)
    pixels = [split.clean.flatten(1).numpy() for split in (train, test)]
    return nearest_neighbours(pixels[0], train.y.numpy(), pixels[1], test.y.numpy(), 1 if labels == 1 else 5)


def _draw_baselines(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    numbers = {"CNN": summaries["cnn"]}
    for labels in (1, 5, 600):
        numbers[f"{labels} label{'' if labels == 1 else 's'}\nper class"] = summaries[f"neighbours_{labels}"]
    lines = {"paper, CNN": 0.9343, "paper, neighbours": 0.554}
    return {"table_x": bars(numbers, "Yaramsetty, table X: CNN and nearest neighbours", "test accuracy, %", lines)}


def _conclusions() -> Experiment:
    """What the paper concludes from all three stacks; the trainings are those of their own experiments."""
    stacks = {"_".join(map(str, sizes)): _stack_experiment(sizes, table) for sizes, table in STACKS.items()}
    stages = {
        f"{stack}/{name}": stage
        for stack, experiment in stacks.items()
        for name, stage in experiment.stages.items()
        if name.startswith(("layer", "labels_5")) and name != "layer_1_plain"
    }
    return Experiment(
        "yaramsetty/conclusions",
        "the three stacks and nearest neighbours compared (section VI.B, table X)",
        stages,
        _measure_conclusions,
        (
            Claim("larger networks are worse: 784-100 with 5 labels, above 784-300-100, above 784-500-200-100",
                  "best_100", descending("best_300_100", "best_500_200_100"), 0.7017, percent=True),
            Claim("the stack is better than nearest neighbours: 784-100 with 5 labels, above 5 nearest neighbours",
                  "best_100", above("neighbours_5"), 0.7017, percent=True),
        ),
        _draw_conclusions,
        "",
        {"quick": 10, "full": 10},
    )  # fmt: skip


def _measure_conclusions(runs: Runs) -> dict[str, float]:
    """For each stack the test accuracy of its best rates, chosen on validation images; and nearest neighbours."""
    # Any stage will do: its images are needed, and not its network.
    values = {"neighbours_5": runs["100/layer_1"].cached_metric("neighbours_5", _neighbour_accuracy, 5)}
    for sizes in STACKS:
        stack = "_".join(map(str, sizes))
        tuned = [stage for name, stage in runs.items() if name.startswith(f"{stack}/labels")]
        best = max(tuned, key=lambda stage: stage.history("val/acc")[-1][1])
        values[f"best_{stack}"] = best.test_metrics("last")["test/acc"]
    return values


def _draw_conclusions(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    names = {"-".join(map(str, sizes)): "best_" + "_".join(map(str, sizes)) for sizes in STACKS}
    numbers = {label: summaries[name] for label, name in names.items()}
    numbers["5 nearest\nneighbours"] = summaries["neighbours_5"]
    title = "Yaramsetty, table X: 5 labels per class"
    return {"table_x": bars(numbers, title, "test accuracy, %", {"paper, 784-100": 0.7017, "paper, KNN": 0.554})}


EXPERIMENTS = (
    Experiment(
        "yaramsetty/denoising",
        "784-256-784 against salt-and-pepper noise (figures 5 to 11)",
        {
            name: Stage("yaramsetty/denoising", ("--data.noise", str(train), "--data.test_noise", str(test)))
            for name, (train, test) in NOISE_CASES.items()
        },
        _measure_denoising,
        (
            Claim("clear reconstructions with noise 0.1 in training and test: variance explained",
                  "explained_01_01", at_least(0.7), percent=True,
                  margin="with 70 % of the variance the garments of figure 6 and their sleeves can be told apart"),
            Claim("satisfactory with noise 0.3 in training and 0.5 in test: variance explained",
                  "explained_03_05", at_least(0.0), percent=True,
                  margin="below 0 %, the mean training image would be the better answer to every image"),
            Claim("noise 0.3 and 0.5 is less clear than 0.1 and 0.1: variance explained", "explained_03_05",
                  below("explained_01_01"), percent=True),
            Claim("all reconstructions look alike, noise 0.5 in training and 0.3 in test: variance between them,"
                  " as a share of that between the originals", "spread_05_03", at_most(0.05), percent=True,
                  margin=ALIKE),
            Claim("all reconstructions look alike, noise 0.5 in training and test: the same", "spread_05_05",
                  at_most(0.05), percent=True, margin=ALIKE),
            Claim("noise 0.5 in training and test: error, as a multiple of that of the mean training image",
                  "ratio_05_05"),
        ),
        _draw_denoising,
        "",
        {"quick": 4, "full": 4},
        "At noise 0.5 salt and pepper replace every pixel and leave no information: the error is"
        " {ratio_05_05:.3f} times that of answering every image with the mean training image. For the same"
        " reason nothing can be satisfactory at test noise 0.5: {ratio_03_05:.2f} times.",
    ),
    *(_stack_experiment(sizes, table) for sizes, table in STACKS.items()),
    _conclusions(),
    Experiment(
        "yaramsetty/baselines",
        "a convolutional classifier and nearest neighbours (table X)",
        {"cnn": Stage("yaramsetty/cnn", quick=("--trainer.max_epochs", "4"))},
        _measure_baselines,
        (
            Claim("CNN classifier", "cnn", paper=0.9343, percent=True,
                  not_comparable="the paper does not give its layers, nor how many images it was trained on"),
            Claim("5 nearest neighbours with 5 labels per class", "neighbours_5", paper=0.554, percent=True,
                  not_comparable="the paper gives neither the number of neighbours nor that of labels"),
            Claim("nearest neighbour with 1 label per class", "neighbours_1", percent=True),
            Claim("5 nearest neighbours with 600 labels per class", "neighbours_600", percent=True),
        ),
        _draw_baselines,
        "4 epochs instead of 30",
        {"quick": 10, "full": 90},
    ),
)  # fmt: skip
