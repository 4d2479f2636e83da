"""Training from Python with an ordinary Lightning Trainer, as a run that works with `test` and `fit --resume`."""

from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_mnist.data import ImageDataModule
from lit_mnist.models import LitModel
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.folder import CONFIG
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.run import Run
from lit_mnist.training.checkpoints.artifacts import log_checkpoints
from lit_mnist.training.checkpoints.exact_resume import ExactResume
from lit_mnist.training.checkpoints.files import CHECKPOINTS, best_callback
from lit_mnist.training.configuration import CheckpointArgs, LitCLI

TRAINER_FIELDS = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
)
"""Arguments that affect the training and that a Trainer keeps as attributes of the same name."""


def resumable(run: Run, model: LitModel, seed: int = 0, often: CheckpointArgs | None = None) -> list[Callback]:
    """Callbacks with which an ordinary Trainer stores the same files in a run as `lit-mnist fit`.

    These are the configuration, the best checkpoint, and a last checkpoint from which `lit-mnist fit --resume`
    continues exactly. Your own callbacks are not part of the configuration.

    Args:
        run: The run that the Trainer's MLflowTracker writes to.
        model: The model to be trained.
        seed: Seed of dropout and of everything else that the model draws from torch's generator.
        often: How often the last checkpoint is written; by default as often as `fit` does.

    Returns:
        The callbacks, to be given to the Trainer in this order.

    """
    folder = run.folder / CHECKPOINTS
    # The watch is never entered: the user's own program keeps its signal handlers.
    resume = ExactResume(SignalWatch(), often or CheckpointArgs(), seed)
    resume.folder, resume.before_save = folder, run.sync
    best = best_callback(model)
    best.dirpath = str(folder)
    # ExactResume first: the checkpoint of a step is written before another callback begins the next one.
    return [resume, _RunFiles(run, seed), best]


class _RunFiles(Callback):
    """Writes the run's configuration at the start, and logs its checkpoints at the end."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.seed = run, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration, so that a run that is killed at any time can be resumed."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        # With a DataLoader instead of a data module there is no configuration to resume from.
        if stage != "fit" or not isinstance(data, ImageDataModule):
            return
        # Built from the objects, since there is no command line that describes them.
        config = {
            "seed_everything": self.seed,
            "trainer": {name: getattr(trainer, name) for name in TRAINER_FIELDS},
            "model": _class_and_arguments(pl_module),
            "data": _class_and_arguments(data),
            "tracking": {"experiment": self.run.experiment},
        }
        # Written twice: LitCLI reads the file, checks the fields and adds the defaults of those that are missing.
        path = self.run.folder / CONFIG
        replace_text(path, yaml.safe_dump(config, sort_keys=False))
        text = LitCLI(["--config", str(path)]).config_yaml()
        replace_text(path, text)
        self.run.log_text(text, CONFIG)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the checkpoints of a training that has ended."""
        if stage == "fit":
            log_checkpoints(self.run)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the checkpoints of a training that has failed or was interrupted."""
        log_checkpoints(self.run, copy=True)


def _class_and_arguments(instance: Any) -> dict[str, Any]:
    cls = type(instance)
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": dict(instance.hparams)}
