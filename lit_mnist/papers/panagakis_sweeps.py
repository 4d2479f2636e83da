"""Panagakis' three sweeps of the classifier: size of its layer, epochs, batch size (figures 10 to 15)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lit_mnist.papers.report.claims import Above, Below, Claim, Descending
from lit_mnist.papers.report.drawing import marks
from lit_mnist.papers.report.experiment import Experiment, Runs, Summaries
from lit_mnist.papers.report.trained import Trained
from lit_mnist.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW_VALIDATED = ("--trainer.limit_val_batches", "2")
ENCODER = Stage(
    "panagakis/autoencoder", quick=("--data.train_size", "2000", "--trainer.max_epochs", "10", *FEW_VALIDATED)
)
IMAGES = ("--data.train_size", "4000", *FEW_VALIDATED)
EPOCHS = ("--model.frozen_epochs", "2", "--trainer.max_epochs", "4")
SMALL_BATCH = ("--data.batch_size", "64")
CUT = "4,000 images instead of 48,000, {}2 epochs frozen and 2 whole instead of 100 and up to 100"

LAYERS = (32, 64, 128, 256)
BATCHES = (64, 128, 256, 512)
SHARES = (4, 2, 1)
"""Of the epochs of the full preset, and of as many as four in the quick one."""


def _classifier(flags: tuple[str, ...], quick: tuple[str, ...]) -> Stage:
    return Stage("panagakis/classifier", flags, (*IMAGES, *quick), source=ENCODER)


def _epochs(frozen: int) -> tuple[str, ...]:
    return ("--model.frozen_epochs", str(frozen), "--trainer.max_epochs", str(2 * frozen))


def _measure(runs: Runs) -> dict[str, float]:
    values = {}
    for name, run in runs.items():
        if name != "autoencoder":
            values[f"loss_{name}"] = min(loss for _, loss in run.history("val/loss"))
            values[f"acc_{name}"] = max(share for _, share in run.history("val/acc"))
            values[f"train_loss_{name}"] = run.history("train/loss_epoch")[-1][1]
            values[f"seconds_{name}"] = _epoch_seconds(run)
    return values


def _epoch_seconds(run: Trained) -> float:
    """The shorter of the last two epochs, or of as many as there are: the encoder learns in these."""
    ends = run.times("train/loss_epoch")
    return min(after - before for before, after in list(pairwise(ends))[-2:])


def _measure_epochs(runs: Runs) -> dict[str, float]:
    tested = {f"test_acc_{name}": run.tested()["test/acc"] for name, run in runs.items() if name != "autoencoder"}
    return _measure(runs) | tested


def _draw_over(what: str, first: int) -> Callable[[Sequence[Runs], Summaries], dict[str, "Figure"]]:
    """What draws loss and accuracy over the variants, as figures `first` and `first` + 1 of the paper."""

    def draw(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
        names = [name for name in seeds[0] if name != "autoencoder"]
        quantities = (
            ("loss", "cross-entropy", {"training": "train_loss", "validation": "loss"}),
            ("accuracy", "validation accuracy, %", {"validation": "acc"}),
        )
        return {
            f"figure_{number}": marks(
                {label: [summaries[f"{key}_{name}"] for name in names] for label, key in lines.items()},
                names,
                f"Panagakis, figure {number}: {quantity} by {what}",
                what,
                ylabel,
            )
            for number, (quantity, ylabel, lines) in enumerate(quantities, first)
        }

    return draw


SWEEPS = (
    Experiment(
        "panagakis/layer_size",
        "the classifier by the size of its dense layer (figures 10 and 11)",
        {
            "autoencoder": ENCODER,
            **{
                str(size): _classifier(("--model.hidden_sizes", f"[{size}]"), (*EPOCHS, *SMALL_BATCH))
                for size in LAYERS
            },
        },
        _measure,
        (
            Claim(
                "the smallest validation loss is that of 128",
                "loss_128",
                Below(("loss_32", "loss_64", "loss_256")),
            ),
            Claim("validation loss with 64", "loss_64", None),
            Claim("validation loss with 256", "loss_256", None),
            Claim("validation accuracy with 128", "acc_128", None, percent=True),
        ),
        _draw_over("size of the dense layer", 10),
        CUT.format("batches of 64 instead of 256, "),
        {"quick": 8, "full": 2400},
    ),
    Experiment(
        "panagakis/epochs",
        "the classifier by its epochs, as many frozen as whole (figures 12 and 13)",
        {
            "autoencoder": ENCODER,
            **{
                f"1/{share}": _classifier(_epochs(100 // share), (*_epochs(4 // share), *SMALL_BATCH))
                for share in SHARES
            },
        },
        _measure_epochs,
        (
            Claim(
                "more epochs help: test accuracy with all, half and a quarter of them",
                "test_acc_1/1",
                Descending(("test_acc_1/2", "test_acc_1/4")),
                percent=True,
            ),
            Claim("test accuracy with half of them", "test_acc_1/2", None, percent=True),
            Claim("test accuracy with a quarter of them", "test_acc_1/4", None, percent=True),
        ),
        _draw_over("share of the epochs", 12),
        "4,000 images instead of 48,000, batches of 64 instead of 256; 4 + 4 epochs and their half and quarter"
        " instead of 100 + 100, 50 + 50 and 25 + 25",
        {"quick": 7, "full": 1200},
    ),
    Experiment(
        "panagakis/batch_size",
        "the classifier by its batch size (figures 14 and 15)",
        {
            "autoencoder": ENCODER,
            **{str(size): _classifier(("--data.batch_size", str(size)), EPOCHS) for size in BATCHES},
        },
        _measure,
        (
            Claim(
                "the smallest validation loss is that of 256",
                "loss_256",
                Below(("loss_64", "loss_128", "loss_512")),
            ),
            Claim(
                "the highest validation accuracy is that of 256",
                "acc_256",
                Above(("acc_64", "acc_128", "acc_512")),
                percent=True,
            ),
            Claim(
                "larger batches make an epoch shorter: seconds with 64, above those with 128, 256, 512",
                "seconds_64",
                Descending(("seconds_128", "seconds_256", "seconds_512")),
            ),
            Claim(
                "the training loss rises with the batch: with 512, above those with 256, 128, 64",
                "train_loss_512",
                Descending(("train_loss_256", "train_loss_128", "train_loss_64")),
            ),
            Claim("validation loss with 64", "loss_64", None),
            Claim("seconds of an epoch with 512", "seconds_512", None),
        ),
        _draw_over("batch size", 14),
        CUT.format(""),
        {"quick": 8, "full": 2400},
    ),
)
