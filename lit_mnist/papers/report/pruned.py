"""Pruning of a trained autoencoder, measured: by how much, at what loss, before and after retraining."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from lit_mnist.data import ImageDataModule
from lit_mnist.models import DenseAutoencoder
from lit_mnist.models.pruning import Removal, distinctiveness, find_removals, pruned
from lit_mnist.papers.report.drawing import new_figure
from lit_mnist.papers.report.experiment import Runs, Summaries
from lit_mnist.papers.report.trained import Trained, reconstruct, test_split, train_split
from lit_mnist.signals import SignalWatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANGLE = 15
"""Degrees; Gedeon's."""
ANGLES = (15, 30, 60, 65, 70, 75, 80)
"""Wider ones prune more: for the curve."""
IMAGES = 2000
"""Training images over which neurons are compared."""
RETRAINED_STEPS = 1000
GAP = 3
"""Neurons between two points that are both labelled with their angle."""


class Heed(Callback):
    """Ends a training that leaves no checkpoint at the step after a signal."""

    def __init__(self, watch: SignalWatch) -> None:
        self.watch = watch

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """End after the step before."""
        self.watch.check()


def measure_pruning(runs: Runs) -> dict[str, float]:
    """Neurons removed, and the test error before, after, and after retraining; the same for wider angles."""
    run = runs["autoencoder"]
    values = {"mse_unpruned": run.tested()["test/mse"]}
    for angle in ANGLES:
        values[f"removed_{angle}"] = run.once(f"removed_{angle}", lambda a=angle: _count(_removals(run, a)))  # type: ignore[misc]
        values[f"mse_{angle}"] = run.once(f"mse_pruned_{angle}", lambda a=angle: _pruned_mse(run, a))  # type: ignore[misc]
        values[f"retrained_{angle}"] = run.once(
            f"mse_retrained_{angle}_{RETRAINED_STEPS}",
            lambda a=angle: _retrained_mse(run, a),  # type: ignore[misc]
        )
    names = {"removed": "removed", "mse_pruned": "mse", "mse_retrained": "retrained"}
    return values | {name: values[f"{short}_{ANGLE}"] for name, short in names.items()}


def draw_pruning(seeds: Sequence[Runs], summaries: Summaries) -> dict[str, "Figure"]:
    """Test error over the neurons removed."""
    figure = new_figure(7.5, 4.2, "Zhang: pruning by distinctiveness")
    axes = figure.subplots()
    removed = [0.0, *(summaries[f"removed_{angle}"].mean for angle in ANGLES)]
    start = summaries["mse_unpruned"].mean
    for name, label in (("mse", "pruned"), ("retrained", f"retrained for {RETRAINED_STEPS:,} iterations")):
        errors = [start, *(summaries[f"{name}_{angle}"].mean for angle in ANGLES)]
        axes.plot(removed, errors, marker="o", label=label)
    last = -float(GAP)
    for angle, x in zip(ANGLES, removed[1:], strict=True):
        if x - last >= GAP:
            place = (x, summaries[f"mse_{angle}"].mean)
            axes.annotate(f"{angle}°", place, (-4, 4), textcoords="offset points", fontsize=8, ha="right")
            last = x
    axes.set(xlabel="hidden neurons removed, of 98", ylabel="test MSE")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return {"pruning": figure}


def _removals(run: Trained, angle: float) -> list[Removal]:
    data = run.settings().datamodule
    data.setup("fit")
    angles = distinctiveness(_model(run), train_split(data).clean[:IMAGES])
    return find_removals(angles, angle, 180 - angle)


def _count(removals: Sequence[Removal]) -> int:
    return sum(len(removal.removed) for removal in removals)


def _pruned_mse(run: Trained, angle: float) -> float:
    return _test_mse(pruned(_model(run), _removals(run, angle)), run.data())


def _retrained_mse(run: Trained, angle: float) -> float:
    smaller = pruned(_model(run), _removals(run, angle))
    settings = run.settings("--trainer.max_steps", str(RETRAINED_STEPS), "--trainer.enable_progress_bar", "false")
    trainer = settings.make_trainer(
        logger=False, enable_checkpointing=False, limit_val_batches=0, callbacks=[Heed(run.watch)]
    )
    trainer.fit(smaller, datamodule=settings.datamodule)
    return _test_mse(smaller.cpu().eval(), run.data())


def _test_mse(model: DenseAutoencoder, data: ImageDataModule) -> float:
    split = test_split(data)
    return float((reconstruct(model, split.x) - split.clean).square().mean())


def _model(run: Trained) -> DenseAutoencoder:
    model = run.model()
    assert isinstance(model, DenseAutoencoder)
    return model
