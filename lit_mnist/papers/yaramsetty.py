"""Yaramsetty, Gade and Adusumilli (Fashion-MNIST): denoising, stacked autoencoders, baselines.

"Image Reconstruction using Denoising Autoencoder and Classification of Fashion MNIST Data using Stacked
Autoencoders".
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lit_mnist.data.loader import Batch
from lit_mnist.data.randomness import keyed_generator
from lit_mnist.data.split import per_class
from lit_mnist.models import Autoencoder
from lit_mnist.papers.report.claims import Claim, above, at_least, at_most, below, close_to, descending, within
from lit_mnist.papers.report.drawing import bars, curves
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.heads import Heads, train_heads
from lit_mnist.papers.report.probes import nearest_neighbours
from lit_mnist.papers.report.trained import (
    TrainedStage,
    encode,
    mean_image_mse,
    predict,
    test_split,
    train_split,
)
from lit_mnist.tracking.figures import image_rows
from lit_mnist.training.report import one_per_class
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# All experiments except the CNN: 600 training and 60 test images per class (section V), chosen by the seed. The
# paper does not state which images it used, and with 600 test images an accuracy is uncertain by ± 2 to 4 points.


# ---- yaramsetty/denoising: sections V.A and VI.A, figures 5 to 11 ----
# Noise p of the paper's algorithm (section IV.B) sets a pixel to 1 with probability p and to 0 with probability p:
# a share of 2 p of all pixels is replaced, and all of them at 0.5. So the inputs of cases 3 and 4 have no
# information. The algorithm compares `rnd` twice and does not say when it is drawn; here it is drawn once
# per pixel. Drawn anew for each comparison, 75 % of the pixels would be replaced at 0.5. Not stated: the
# optimiser, the batch size.

NOISE_CASES = {"01_01": (0.1, 0.1), "03_05": (0.3, 0.5), "05_03": (0.5, 0.3), "05_05": (0.5, 0.5)}
"""Noise in training and in testing."""
ALIKE = "with 5 % of the variance between the originals, images of different classes look the same"


def _measure_denoising(runs: Runs) -> dict[str, float]:
    mean = runs["01_01"].cached_metric("mean_image_mse", mean_image_mse)
    values = {"mse_mean_image": mean}
    for name, stage in runs.items():
        mse = stage.test_metrics()["test/mse"]
        values |= {f"mse_{name}": mse, f"explained_{name}": 1 - mse / mean, f"ratio_{name}": mse / mean}
        values[f"spread_{name}"] = stage.cached_metric("spread", _spread)
        values[f"explained_all_{name}"] = stage.cached_metric("explained_all", _explained_on_all)
    return values


def _all_test_images(stage: TrainedStage) -> Batch:
    """All 10,000 test images, instead of 60 per class."""
    data = stage.rebuild("--data.test_per_class", "null").datamodule
    data.setup("test")
    return test_split(data)


def _explained_on_all(stage: TrainedStage) -> float:
    """The share of the variance of all test images that the autoencoder explains."""
    split, mean = _all_test_images(stage), train_split(stage.data()).clean.mean(0)
    error = (predict(stage.model(), split.x) - split.clean).square().mean()
    return float(1 - error / (split.clean - mean).square().mean())


def _spread(stage: TrainedStage) -> float:
    """Variance between the reconstructions of different images, as a share of that between the originals."""
    # 0 if all reconstructions are equal.
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
    # The paper describes its figures 10 and 11 as "almost similar to each other and blurred", which is optimal
    # when the noise leaves no information.
    mean = train_split(runs["01_01"].data()).clean.mean(0, keepdim=True)
    rows["mean training image"] = mean.expand(10, -1, -1, -1).numpy()
    title = "Yaramsetty, figures 5 to 11: at noise 0.5 the best answer is the mean image"
    drawn = {"figure_11": image_rows(rows, title)}
    for number, name in ((5, "01_01"), (7, "03_05"), (9, "05_03")):
        title = f"Yaramsetty, figure {number}: training cost at noise {NOISE_CASES[name][0]:g}"
        histories = {"training": [runs[name].history("train/loss") for runs in seeds]}
        drawn[f"figure_{number}"] = curves(histories, title, "cross-entropy per image")
    return drawn


DENOISING_EXPERIMENT = Experiment(
    "yaramsetty/denoising",
    "784-256-784 against salt-and-pepper noise (figures 5 to 11)",
    stages={
        name: Stage("yaramsetty/denoising", ("--data.noise", str(train), "--data.test_noise", str(test)))
        for name, (train, test) in NOISE_CASES.items()
    },
    measure=_measure_denoising,
    claims=(
        # Section VI.A, case 1 and figure 6: "almost equal to original image".
        Claim("clear reconstructions with noise 0.1 in training and test: variance explained",
              "explained_01_01", at_least(0.7), percent=True,
              margin="with 70 % of the variance the garments of figure 6 and their sleeves can be told apart"),
        # Case 2 and figure 8: "satisfactory", "fairly less than case 1".
        Claim("satisfactory with noise 0.3 in training and 0.5 in test: variance explained",
              "explained_03_05", at_least(0.0), percent=True,
              margin="below 0 %, the mean training image would be the better answer to every image. The paper's"
              " algorithm does not say when its random number is drawn; here once per pixel, so that noise 0.5"
              " replaces every pixel"),
        Claim("noise 0.3 and 0.5 is less clear than 0.1 and 0.1: variance explained", "explained_03_05",
              below("explained_01_01"), percent=True),
        # Cases 3 and 4, figures 10 and 11: "almost similar to each other and blurred".
        Claim("all reconstructions look alike, noise 0.5 in training and 0.3 in test: variance between them,"
              " as a share of that between the originals", "spread_05_03", at_most(0.05), percent=True,
              margin=ALIKE),
        Claim("all reconstructions look alike, noise 0.5 in training and test: the same", "spread_05_05",
              at_most(0.05), percent=True, margin=ALIKE),
        # Not in the paper: at noise 0.5 the mean training image is the best possible result.
        Claim("noise 0.5 in training and test: error, as a multiple of that of the mean training image",
              "ratio_05_05"),
        # The paper's 600 test images are a small sample.
        *(
            Claim(f"noise {train:g} in training and {test:g} in test: variance explained, all 10,000 test images",
                  f"explained_all_{name}", percent=True)
            for name, (train, test) in NOISE_CASES.items()
        ),
    ),
    draw=_draw_denoising,
    cut="",
    minutes={"quick": 4, "full": 4},
    finding="At noise 0.5 salt and pepper replace every pixel and leave no information: the error is"
    " {ratio_05_05:.3f} times that of answering every image with the mean training image. For the same"
    " reason nothing can be satisfactory at test noise 0.5: {ratio_03_05:.2f} times.",
)  # fmt: skip


# ---- yaramsetty/stacked_*: section V.B, tables I to IX, figure 12 ----
# Each stack is trained layer by layer without labels; then a softmax layer and the stack are fine-tuned with 1 or
# 5 labelled images per class. Not stated: the optimiser, the batch size, the loss of the upper layers, the
# labelled images.

Table = Mapping[tuple[float, float], Mapping[int, float]]
"""The paper's accuracies: by learning rates (last layer, others), then by labels per class."""

# Table X calls the largest network 784-500-300-100, while section V.B and table I have 784-500-200-100, which is
# used. Test accuracies of tables II and III; V and VI; VIII and IX, as shares rounded to four digits. Ten of the
# eighteen printed values are not a share of 600 images; `findings/lottery.py` counts them.
STACKS: dict[tuple[int, ...], Table] = {
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

# Tables I, IV and VII.
COSTS = {(500, 200, 100): 255.973, (300, 100): 260.35, (100,): 313.08}
"""The paper's reconstruction cost of the first layer, by hidden sizes."""

# Tables I and IV. 0.25 and 6.15 are far below any cross-entropy of sigmoid codes, summed over their neurons (235
# here for the second layer), so another loss must have been used.
DEEPER_COSTS = {(500, 200, 100): (0.25, 9.13), (300, 100): (6.152187,), (100,): ()}
"""The paper's costs of the layers above the first, by hidden sizes."""

# Tables II, III, V, VI, VIII and IX.
TRAINED: dict[tuple[int, ...], dict[int, tuple[tuple[float, float], ...]]] = {
    (500, 200, 100): {
        1: ((0.00352, 0.5118), (0.08165, 0.5134), (0.01451, 0.5130)),
        5: ((0.08322, 0.6728), (0.37515, 0.6618), (0.14674, 0.6514)),
    },
    (300, 100): {
        1: ((0.013322, 0.5228), (0.027515, 0.51455), (0.087674, 0.5226)),
        5: ((0.00722, 0.6457), (0.01790, 0.6494), (0.024674, 0.6554)),
    },
    (100,): {
        1: ((0.0, 0.55595), (0.00365, 0.5534), (0.00006, 0.5454)),
        5: ((0.0, 0.7010), (0.00153, 0.7030), (0.000059, 0.6958)),
    },
}
"""The paper's final cost and training accuracy for each row of `STACKS`, by hidden sizes and labels per class."""

# Section VI.B.
TEN_LABELS = 0.767
"""The paper's accuracy with 10 labels per class. It does not say with which of the stacks."""
LABELS = (1, 5, 10)
"""Labelled images per class."""
TABLE_X = (0.647, 0.647, 0.70167)
"""The paper's accuracies of the three stacks in table X, in the order of `STACKS`."""
NEIGHBOURS = 0.554
"""The paper's accuracy of nearest neighbours in table X. It gives neither their number nor that of labels."""
BY_CHANCE = "the middle 95 % of the choices: inside it, a random choice of labels explains the paper's accuracy"
SAME_RATES = (
    "the paper's own accuracies with 5 labels differ by up to 1.7 points between rates; it says only that other"
    " rates did not increase the accuracy, and equivalence is this project's reading"
)
UNNAMED = "the paper does not say which images were labelled, and their choice alone decides by several points"
# With one label per class, accuracies have a standard deviation of 4 points, so a single choice is not
# informative.
DRAWS = 100
"""Random choices of the labelled images for each stack and seed."""

HEADS = "few_labels"
"""The name under which the results of `_frozen_heads` are stored. It has to change with what they contain."""
COST_STEPS = 100
"""Number of last steps whose mean loss is the final training cost."""

# Tables II, III, V, VI, VIII and IX, "No of Iterations".
FINE_TUNING = 2000
"""Steps of fine-tuning."""


def _stack_experiment(sizes: tuple[int, ...], table: Table) -> Experiment:
    """The experiment of one stack: its layers, from the images up, and every fine-tuning of the tables."""
    return Experiment(
        f"yaramsetty/stacked_{'_'.join(map(str, sizes))}",
        f"stacked autoencoders {'-'.join(map(str, sizes))}, fine-tuned with few labels (tables I to IX)",
        stages=_stack_stages(sizes, table),
        measure=_measure_stack,
        claims=tuple(_stack_claims(sizes, table)),
        draw=_draw_stack,
        cut="",
        minutes={"quick": 7, "full": 7},
        finding="The choice of the labelled images decides: on the frozen stack the middle 95 % of random choices"
        " of 1, 5 and 10 per class give {low_1:.1%} to {high_1:.1%}, {low_5:.1%} to {high_5:.1%} and {low_10:.1%}"
        " to {high_10:.1%}. The paper does not say which images it chose.",
    )


def _stack_rows(table: Table) -> list[tuple[tuple[float, float], int, float]]:
    """Rates, labels per class and accuracy of each entry of `table`."""
    return [(rates, labels, value) for rates, row in table.items() for labels, value in row.items()]


def _tuned_name(rates: tuple[float, float], labels: int) -> str:
    """The name of a fine-tuning's stage, and of its accuracy."""
    return f"labels_{labels}_lr_{rates[0]:g}_{rates[1]:g}"


def _stack_stages(sizes: tuple[int, ...], table: Table) -> dict[str, Stage]:
    """The layers, each on the layers below it, the first layer also without momentum, and the fine-tunings."""
    stages: dict[str, Stage] = {}
    lower: Stage | None = None
    for depth in range(1, len(sizes) + 1):
        # Learning rates and iterations of table I are those of configs/yaramsetty/layer_1.yaml, layer_2, layer_3.
        layer = ["--model.hidden_sizes", str(list(sizes[:depth]))]
        # Table IV trains the second layer for 1,000 iterations, table I for 700.
        if len(sizes) == 2 and depth == 2:
            layer += ["--trainer.max_steps", "1000"]
        source_flag = "--model.below_checkpoint"
        lower = Stage(f"yaramsetty/layer_{depth}", tuple(layer), source=lower, source_flag=source_flag)
        stages[f"layer_{depth}"] = lower
    # Momentum is not stated. Without it the first layers are close to the costs of tables I and IV (254 and 257),
    # but the layers above learn too little to classify as well as the paper's. Both are reported.
    plain = ("--model.hidden_sizes", str(list(sizes[:1])), "--model.momentum", "0")
    stages["layer_1_plain"] = Stage("yaramsetty/layer_1", plain)

    for rates, labels, _ in _stack_rows(table):
        if rates[1] == 0:
            continue  # for a frozen stack, see `_frozen_heads`
        flags = {
            "--model.hidden_sizes": list(sizes),
            "--model.lr": rates[0],
            "--model.encoder_lr": rates[1],
            "--data.train_per_class": labels,
            # Every step uses all labelled images of the ten classes, so an iteration of the paper is an epoch
            # here.
            "--data.batch_size": 10 * labels,
        }
        given = tuple(str(x) for flag in flags.items() for x in flag)
        stages[_tuned_name(rates, labels)] = Stage("yaramsetty/finetune", given, source=lower)
    return stages


def _stack_claims(sizes: tuple[int, ...], table: Table) -> list[Claim]:
    """The claims about one stack: its costs, each row of the tables, and how the accuracies compare."""
    first = next(iter(table))
    return [
        *_layer_claims(sizes),
        *_accuracy_claims(table),
        *_frozen_claims(sizes, table[first]),
        *_tuned_claims(sizes, table),
        Claim("more labels help: 10 per class, above 5, above 1", "random_10",
              descending("random_5", "random_1"), percent=True),
        # Section VI.B: changing the rates "did not increase the accuracy". That they do not matter in either
        # direction is this project's reading.
        *(
            Claim(f"the learning rates do not matter: 5 per class, {first} and {rates}", "own_5",
                  close_to(_tuned_name(rates, 5), 0.02), percent=True, margin=SAME_RATES)
            for rates in table if rates != first
        ),
    ]  # fmt: skip


def _layer_claims(sizes: tuple[int, ...]) -> list[Claim]:
    """The claims about the costs of a stack's layers, from the images up."""
    cost = COSTS[sizes]
    missing = "the paper does not give the loss; a cross-entropy cannot be lower than the codes' entropy"
    return [
        Claim("cost of the first layer, at most the paper's", "cost", at_most(cost), cost),
        Claim("the same cost, trained without momentum", "cost_plain", within(cost, 0.02 * cost), cost,
              margin="2 % of the cost: the paper names neither optimiser nor batch size"),
        Claim("cost of the first layer on the test images", "cost_test"),
        *(
            Claim(f"cost of layer {depth}", f"cost_{depth}", paper=deeper, not_comparable=missing)
            for depth, deeper in enumerate(DEEPER_COSTS[sizes], 2)
        ),
    ]  # fmt: skip


def _accuracy_claims(table: Table) -> list[Claim]:
    """Each test accuracy of the tables."""
    claims = []
    for rates, labels, value in _stack_rows(table):
        text = f"{_per_class(labels)}, rates {rates[0]:g} (last layer) and {rates[1]:g} (others)"
        key = _tuned_name(rates, labels)
        # For the frozen stack, the mean over all choices is compared, since the paper's choice is unknown.
        if rates[1] == 0:
            text, key = f"{text}, mean over {DRAWS} choices of the labelled images", f"random_{labels}"
        claims.append(Claim(text, key, paper=value, percent=True, not_comparable=UNNAMED))
    return claims


def _frozen_claims(sizes: tuple[int, ...], accuracies: Mapping[int, float]) -> list[Claim]:
    """The claims about the frozen stack, whose `accuracies` are the first row of the paper's tables.

    Only the softmax layer is trained, which is fast enough for many choices of the labelled images. The verdict
    depends on the rank of the paper's accuracy among them.
    """
    claims = []
    for labels, ((final, training), *_) in TRAINED[sizes].items():
        frozen, accuracy = f"{_per_class(labels)}, frozen stack", 100 * accuracies[labels]
        claims += [
            Claim(f"{frozen}: share of random choices that give at most the paper's {accuracy:.2f} %",
                  f"rank_{labels}", within(0.5, 0.475), percent=True, margin=BY_CHANCE),
            Claim(f"{frozen}: final cost", f"cost_labels_{labels}", paper=final, not_comparable=UNNAMED),
            Claim(f"{frozen}: accuracy on the 6,000 training images", f"train_{labels}", paper=training,
                  percent=True, not_comparable=UNNAMED),
        ]  # fmt: skip
    claims += [
        # Section VI.B, in one sentence, without the stack.
        Claim("10 labels per class", "random_10", paper=TEN_LABELS, percent=True,
              not_comparable="the paper does not say with which stack and rates"),
        Claim("10 labels per class, if it was this frozen stack: share of random choices that give at most the"
              f" paper's {100 * TEN_LABELS:.2f} %", "rank_10", percent=True),
    ]  # fmt: skip
    # Additional numbers, since with the paper's 600 test images an accuracy is uncertain by ± 2 to 4 points.
    return claims + [
        Claim(f"{_per_class(labels)}, frozen stack, on all 10,000 test images", f"all_{labels}", percent=True)
        for labels in LABELS
    ]


def _tuned_claims(sizes: tuple[int, ...], table: Table) -> list[Claim]:
    """The other columns of the rows in which the stack is trained too."""
    claims = []
    for i, rates in enumerate(table):
        if rates[1] == 0:
            continue  # for a frozen stack, see `_frozen_claims`
        for labels, rows in TRAINED[sizes].items():
            text, name = f"{_per_class(labels)}, rates {rates[0]:g} and {rates[1]:g}", _tuned_name(rates, labels)
            final, training = rows[i]
            claims += [
                Claim(f"{text}: final cost", f"cost_{name}", paper=final, not_comparable=UNNAMED),
                Claim(f"{text}: accuracy on the 6,000 training images", f"train_{name}", paper=training,
                      percent=True, not_comparable=UNNAMED),
                Claim(f"{text}, on all 10,000 test images", f"all_{name}", percent=True),
            ]  # fmt: skip
    return claims


def _per_class(labels: int) -> str:
    return f"{labels} label{'' if labels == 1 else 's'} per class"


def _measure_stack(runs: Runs) -> dict[str, float]:
    # The layers of the stack, from the images up. The first layer without momentum is not one of them.
    layers = sorted(name for name in runs if name.startswith("layer") and name != "layer_1_plain")
    names = {"cost": "layer_1", "cost_plain": "layer_1_plain"} | {f"cost_{name[-1]}": name for name in layers[1:]}
    # The paper's costs are training costs. Here: of the last `COST_STEPS` steps, since a batch is a small sample.
    values = {key: final_cost(runs[name].history("train/loss")) for key, name in names.items()}
    values["cost_test"] = runs["layer_1"].test_metrics()["test/loss"]
    # The last checkpoint, since the best one is chosen with more labels than the few training labels.
    tuned = {name: stage for name, stage in runs.items() if name.startswith("labels")}
    values |= {name: stage.test_metrics("last")["test/acc"] for name, stage in tuned.items()}
    for name, stage in tuned.items():
        values[f"cost_{name}"] = final_cost(stage.history("train/loss"))
        values[f"train_{name}"] = stage.cached_metric("acc_6000", _accuracy_on_the_stacks_images)
        values[f"all_{name}"] = stage.cached_metric("acc_all", _accuracy_on_all)
    heads: dict[str, float] = runs[layers[-1]].cached_json(HEADS, _frozen_heads)
    return values | heads


def _accuracy_on_all(stage: TrainedStage) -> float:
    """The accuracy of the last checkpoint on all test images."""
    return _accuracy(stage, _all_test_images(stage))


def _accuracy_on_the_stacks_images(stage: TrainedStage) -> float:
    """The accuracy of the last checkpoint on the 600 training images per class of the stack below."""
    data = stage.rebuild("--data.train_per_class", "600").datamodule
    data.setup("fit")
    return _accuracy(stage, train_split(data))


def _accuracy(stage: TrainedStage, split: Batch) -> float:
    return float((predict(stage.model("last"), split.x).argmax(1) == split.y).float().mean())


def final_cost(history: Sequence[tuple[int, float]]) -> float:
    """The mean of the training losses of the last `COST_STEPS` steps."""
    last, _ = history[-1]
    return fmean(loss for step, loss in history if step > last - COST_STEPS)


def _frozen_heads(stage: TrainedStage) -> dict[str, float]:
    """Softmax layers on the frozen stack with the top layer `stage`, for `DRAWS` choices of the labelled images.

    The first choice is the same as that of a `fit` with the same seed, and so of the stages that also train the
    stack.
    """
    model, data = stage.model(), stage.data()
    assert isinstance(model, Autoencoder)
    table = STACKS[tuple(model.hparams["hidden_sizes"])]
    # The labelled images are chosen from all training images, not only from the stack's 600 per class.
    every = stage.rebuild("--data.train_per_class", "null", "--data.test_per_class", "null").datamodule
    every.setup("fit")
    every.setup("test")
    images, labels = train_split(every).clean, train_split(every).y
    validation = Batch(*(torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True)))
    scored = {"test": test_split(data), "all": test_split(every), "train": train_split(data), "val": validation}
    # The stack is frozen, so its codes are computed only once for all choices and steps.
    codes = {name: torch.from_numpy(encode(model, split.clean)) for name, split in scored.items()}
    values: dict[str, float] = {}
    for count in LABELS:
        # The images of each choice; the first key is that of the data module.
        keys: list[tuple[int | str, ...]] = [(data.seed, "train_per_class")]
        keys += [(data.seed, "train_per_class", draw) for draw in range(1, DRAWS)]
        chosen = torch.stack([per_class(labels, count, *key) for key in keys])
        # One softmax layer per choice, all trained at once on their own images.
        own = torch.from_numpy(encode(model, images[chosen.flatten()])).view(*chosen.shape, -1)
        generator = keyed_generator(data.seed, "heads", count)
        heads = Heads.initial(DRAWS, own.shape[2], len(data.class_names), generator)
        heads, cost = train_heads(heads, own, labels[chosen], next(iter(table))[0], FINE_TUNING)
        # Each layer is scored on the same four sets of images.
        accuracies = {name: heads.accuracy(codes[name], split.y) for name, split in scored.items()}
        test = accuracies["test"]
        values |= {f"random_{count}": float(test.mean()), f"own_{count}": float(test[0])}
        values[f"own_val_{count}"] = float(accuracies["val"][0])
        values |= {f"low_{count}": float(test.quantile(0.025)), f"high_{count}": float(test.quantile(0.975))}
        values |= {f"{name}_{count}": float(accuracies[name].mean()) for name in ("all", "train")}
        values[f"cost_labels_{count}"] = float(cost.mean())
        # The share of choices that are no better than the paper's accuracy. This is rounded to four digits (0.5117
        # for 307 of 600 images), so equal accuracies are included by the tolerance of 1e-4.
        paper = TEN_LABELS if count == 10 else next(iter(table.values()))[count]
        values[f"rank_{count}"] = float((test <= paper + 1e-4).float().mean())
    return values


def _draw_stack(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    layers = sorted(name for name in seeds[0] if name.startswith("layer") and name != "layer_1_plain")
    sizes = tuple(seeds[0][layers[-1]].rebuild().model.hparams["hidden_sizes"])
    table = STACKS[sizes]
    frozen = {labels: f"{labels} per class,\nfrozen,\n{DRAWS} choices" for labels in LABELS}
    numbers = {label: summaries[f"random_{labels}"] for labels, label in frozen.items()}
    # The first row of the paper's table is the frozen stack. The table has no accuracy with 10 labels per class.
    paper = {frozen[labels]: value for labels, value in next(iter(table.values())).items()}
    for (last, others), labels, value in _stack_rows(table):
        if others != 0:
            label = f"{labels} per class,\nrates {last:g}\nand {others:g}"
            numbers[label], paper[label] = summaries[_tuned_name((last, others), labels)], value
    stack, ylabel = "-".join(map(str, (784, *sizes))), "test accuracy, %"
    costs = {f"layer {name[-1]}": [runs[name].history("train/loss") for runs in seeds] for name in layers}
    return {
        "accuracy": bars(numbers, f"Yaramsetty: {stack}, fine-tuned with few labels", ylabel, paper=paper),
        "figure_12": curves(costs, f"Yaramsetty, figure 12: training cost of {stack}", "cross-entropy per image"),
    }


# ---- yaramsetty/baselines: section VI.B, table X ----
# Table X gives only one accuracy each for "KNN Classifier" and "CNN Classifier", without layers, number of
# neighbours or training images. So no verdict is possible, and the settings are this project's.


def _measure_baselines(runs: Runs) -> dict[str, float]:
    stage = runs["cnn"]
    values = {"cnn": stage.test_metrics()["test/acc"]}
    for labels in (1, 5, 600):
        name = f"neighbours_{labels}"
        values[name] = stage.cached_metric(name, _neighbour_accuracy, labels)
    return values


def _neighbour_accuracy(stage: TrainedStage, labels: int) -> float:
    """Accuracy of 5 nearest neighbours among raw pixels; of the single nearest one with one label per class."""
    # `labels` images per class, chosen from all training images; tested on 600 images like the stacks.
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
    lines = {"paper, CNN": 0.9343, "paper, neighbours": NEIGHBOURS}
    return {"table_x": bars(numbers, "Yaramsetty, table X: CNN and nearest neighbours", "test accuracy, %", lines)}


BASELINES_EXPERIMENT = Experiment(
    "yaramsetty/baselines",
    "a convolutional classifier and nearest neighbours (table X)",
    stages={"cnn": Stage("yaramsetty/cnn", quick=("--trainer.max_epochs", "4"))},
    measure=_measure_baselines,
    claims=(
        Claim("CNN classifier", "cnn", paper=0.9343, percent=True,
              not_comparable="the paper does not give its layers, nor how many images it was trained on"),
        Claim("5 nearest neighbours with 5 labels per class", "neighbours_5", paper=NEIGHBOURS, percent=True,
              not_comparable="the paper gives neither the number of neighbours nor that of labels"),
        Claim("nearest neighbour with 1 label per class", "neighbours_1", percent=True),
        Claim("5 nearest neighbours with 600 labels per class", "neighbours_600", percent=True),
    ),
    draw=_draw_baselines,
    cut="4 epochs instead of 30",
    minutes={"quick": 10, "full": 90},
)  # fmt: skip


# ---- yaramsetty/cnn: the CNN of table X ----
# The CNN above is below the paper's 93.43 %, for which no settings are stated. So these changes are tried in this
# order, each in addition to the previous ones, and one is chosen on validation images. Averaged weights are not
# tried, since Lightning has them only since 2.6 (EMAWeightAveraging), and this package must run with 2.5.3.

MOVED = ("--data.flip", "true", "--data.shift", "2")
DEEPER = (*MOVED, "--model.channels", "[64,128,256]", "--model.kernel_sizes", "[3,3,3]")
ONE_EPOCH = ("--trainer.max_epochs", "1")


def _measure_cnn(runs: Runs) -> dict[str, float]:
    values, validated = {}, {}
    for name, stage in runs.items():
        values[f"acc_{name}"] = stage.test_metrics()["test/acc"]
        validated[name] = values[f"val_{name}"] = max(accuracy for _, accuracy in stage.history("val/acc"))
    return values | {"acc_chosen": values[f"acc_{max(validated, key=validated.__getitem__)}"]}


def _draw_cnn(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    labels = {"plain": "as it is", "moved": "+ mirrored,\nshifted", "deeper": "+ third\nblock"}
    numbers = {label: summaries[f"acc_{name}"] for name, label in labels.items()}
    title = "Yaramsetty, table X: what brings the CNN closer to the paper"
    return {"tried": bars(numbers, title, "test accuracy, %", {"paper": 0.9343})}


CNN_EXPERIMENT = Experiment(
    "yaramsetty/cnn",
    "the convolutional classifier of table X, and what brings it closer to the paper's number",
    stages={
        "plain": Stage("yaramsetty/cnn", quick=ONE_EPOCH),
        "moved": Stage("yaramsetty/cnn", MOVED, ONE_EPOCH),
        "deeper": Stage("yaramsetty/cnn", DEEPER, ONE_EPOCH),
    },
    measure=_measure_cnn,
    claims=(
        Claim("the one that is best on validation images: test accuracy", "acc_chosen", paper=0.9343, percent=True,
              not_comparable="the paper does not give its layers, nor how many images it was trained on"),
        Claim("two blocks of convolution, 30 epochs: test accuracy", "acc_plain", percent=True),
        Claim("images mirrored and shifted by up to 2 pixels", "acc_moved", percent=True),
        Claim("the same with a third block of 256 channels", "acc_deeper", percent=True),
        *(Claim(f"validation accuracy, {name}", f"val_{name}", percent=True)
          for name in ("plain", "moved", "deeper")),
    ),
    draw=_draw_cnn,
    cut="1 epoch instead of 30",
    minutes={"quick": 10, "full": 300},
)  # fmt: skip


# ---- yaramsetty/conclusions: section VI.B, table X ----


def _conclusions() -> Experiment:
    """The paper's conclusions from all three stacks, with the trainings of the stacks' own experiments."""
    stacks = {"_".join(map(str, sizes)): _stack_experiment(sizes, table) for sizes, table in STACKS.items()}
    stages = {
        f"{stack}/{name}": stage
        for stack, experiment in stacks.items()
        for name, stage in experiment.stages.items()
        # Table X has the accuracies with 5 labels per class.
        if name.startswith(("layer", "labels_5")) and name != "layer_1_plain"
    }
    return Experiment(
        "yaramsetty/conclusions",
        "the three stacks and nearest neighbours compared (section VI.B, table X)",
        stages=stages,
        measure=_measure_conclusions,
        claims=(
            # Table X shows each network's best row by test accuracy, except for the second network: its 64.7 is in
            # no row of table VI, where the best is 65.25. Here the rates are chosen on validation images.
            Claim("larger networks are worse: 784-100 with 5 labels, above 784-300-100, above 784-500-200-100",
                  "best_100", descending("best_300_100", "best_500_200_100"), 0.7017, percent=True),
            Claim("the stack is better than nearest neighbours: 784-100 with 5 labels, above 5 nearest neighbours",
                  "best_100", above("neighbours_5"), 0.7017, percent=True,
                  not_comparable="the paper gives neither the number of neighbours nor that of labels"),
            # Means over many choices of the labelled images vary much less than the rows above. They have no
            # verdict, since the paper trains the last layer at other rates on 784-100.
            *(
                Claim(f"{'-'.join(map(str, (784, *sizes)))} frozen, {_per_class(labels)}, rate"
                      f" {next(iter(table))[0]:g}, mean over {DRAWS} choices of the labelled images",
                      f"frozen_{labels}_{'_'.join(map(str, sizes))}", percent=True)
                for labels in (5, 1) for sizes, table in STACKS.items()
            ),
        ),
        draw=_draw_conclusions,
        cut="",
        minutes={"quick": 7, "full": 7},
    )  # fmt: skip


def _measure_conclusions(runs: Runs) -> dict[str, float]:
    """The test accuracy of each stack's best rates, chosen on validation images; and of nearest neighbours."""
    # Any stage can be used, since only its images are needed.
    values = {"neighbours_5": runs["100/layer_1"].cached_metric("neighbours_5", _neighbour_accuracy, 5)}
    for sizes in STACKS:
        stack = "_".join(map(str, sizes))
        heads = runs[f"{stack}/layer_{len(sizes)}"].cached_json(HEADS, _frozen_heads)
        values |= {f"frozen_{labels}_{stack}": heads[f"random_{labels}"] for labels in (1, 5)}
        scores = [(heads["own_val_5"], heads["own_5"])]
        for name, stage in runs.items():
            if name.startswith(f"{stack}/labels"):
                validated = stage.history("val/acc")[-1][1]
                scores.append((validated, stage.test_metrics("last")["test/acc"]))
        values[f"best_{stack}"] = max(scores, key=lambda score: score[0])[1]
    return values


def _draw_conclusions(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    names = {"-".join(map(str, (784, *sizes))): "best_" + "_".join(map(str, sizes)) for sizes in STACKS}
    numbers = {label: summaries[name] for label, name in names.items()}
    paper = dict(zip(names, TABLE_X, strict=True))
    neighbours = "5 nearest\nneighbours"
    numbers[neighbours], paper[neighbours] = summaries["neighbours_5"], NEIGHBOURS
    title = "Yaramsetty, table X: 5 labels per class"
    return {"table_x": bars(numbers, title, "test accuracy, %", paper=paper)}


EXPERIMENTS = (
    DENOISING_EXPERIMENT,
    *(_stack_experiment(sizes, table) for sizes, table in STACKS.items()),
    _conclusions(),
    BASELINES_EXPERIMENT,
    CNN_EXPERIMENT,
)
