"""Configuration: packaged YAML files, overridden by flags, checked against the classes they name."""

import importlib
import math
import sys
import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_mnist.data import ImageDataModule
from lit_mnist.errors import UsageError, UserError
from lit_mnist.models import LitModel
from lit_mnist.training.config_errors import explain, nearest
from lit_mnist.training.lightning.fast_step import QuietProfiler
from lit_mnist.training.lightning.signals import disable_signal_handlers

TRAINER_DEFAULTS = {
    "max_epochs": 10,
    "devices": 1,
    "log_every_n_steps": 50,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


class TrackingArgs:
    """How a run is called in MLflow."""

    def __init__(
        self,
        experiment: str = "lit_mnist",
        name: str | None = None,
        system_metrics: bool = True,
        figures: bool = True,
    ) -> None:
        """Take the names.

        Args:
            experiment: MLflow experiment that the run belongs to.
            name: What the run is called in the UI; without it, model, dataset and seed.
            system_metrics: Whether to sample the load of processor, memory, disk, network and GPU.
            figures: Whether to draw loss curves, and what the model makes of the validation images.

        """
        self.experiment, self.name = experiment, name
        self.system_metrics, self.figures = system_metrics, figures


@dataclass(frozen=True)
class CheckpointArgs:
    """How often a checkpoint is written that training can go on from."""

    every_n_steps: int | None = 500
    """Optimiser steps between two of them."""
    every_n_minutes: float | None = 5.0
    """Minutes between two of them, whichever comes first."""

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "every_n_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"--checkpoint.{name} {value} must be above 0; null switches it off")


class LitCLI(LightningCLI):
    """LightningCLI on this project's classes: parses and instantiates model and data, and runs nothing.

    `make_trainer` comes later, since a Trainer needs the run that its callbacks write to.
    """

    model: LitModel
    datamodule: ImageDataModule

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            LitModel,
            ImageDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": "lit-mnist fit"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=_resolved(arguments),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # model and data keep plain arguments of their own
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's names, and how often it is saved."""
        parser.add_class_arguments(TrackingArgs, "tracking")
        parser.add_class_arguments(CheckpointArgs, "checkpoint")
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="CPU threads; sums over another number of them are rounded otherwise. null leaves it to torch",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with one line for whatever is wrong."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise UsageError(explain(str(error))) from None
        _check_values(self.config)
        self._fit_model_to_data(parser, args)

    def _fit_model_to_data(self, parser: LightningArgumentParser, args: Any) -> None:
        """Set the model's image_shape and num_classes to the dataset's, unless a flag or a file gives them."""
        data, model = (self.config[group] for group in ("data", "model"))
        module, _, name = data["class_path"].rpartition(".")
        spec = getattr(importlib.import_module(module), name).spec
        known = {"image_shape": list(spec.image_shape), "num_classes": spec.num_classes}
        own = model["init_args"]
        if any(name in own and own[name] != value for name, value in known.items()):
            # Without defaults, the result holds only what the user gave (jsonargparse 4.53).
            given = parser.parse_args(args, defaults=False)["model"].get("init_args", {})
            for name in own.keys() & known.keys() - given.keys():
                own[name] = known[name]

    def before_instantiate_classes(self) -> None:
        """Let the data go by the run's seed unless they were given their own."""
        arguments = self.config["data"]["init_args"]
        if arguments.get("seed") is None:
            arguments["seed"] = self.config["seed_everything"]

    def instantiate_classes(self) -> None:
        """Make model and data; an error of theirs comes out as they raised it."""
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse's, with what each alternative of the type had to say
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise UsageError(" ".join(str(error.__cause__ or error).split())) from None

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Leave it to `make_trainer`."""

    def make_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer of the configuration, with `kwargs` and `callbacks` added."""
        config = dict(self.config_init["trainer"])
        if config["logger"] is not None:
            raise UsageError("--trainer.logger has no effect: every run is logged to MLflow")
        # Ours first: the checkpoint of a step is written before anybody has begun the next one.
        config["callbacks"] = [*kwargs.pop("callbacks", []), *_as_list(config.get("callbacks"))]
        config["plugins"] = [*_as_list(config.get("plugins")), *kwargs.pop("plugins", [])]
        if config["profiler"] is None:
            config["profiler"] = QuietProfiler()
        if config["deterministic"] is None and torch.cuda.is_available():
            config["deterministic"] = "warn"
        if config["enable_progress_bar"] is None:
            config["enable_progress_bar"] = sys.stdout.isatty()
        try:
            with warnings.catch_warnings():
                # Lightning warns on every host that has SLURM installed, also outside a job (SLURMEnvironment).
                warnings.filterwarnings("ignore", message="The `srun` command is available on your system")
                trainer = Trainer(**{**config, **kwargs})
        except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
            raise UsageError(f"--trainer: {' '.join(str(error).split())}") from None
        disable_signal_handlers(trainer)
        return trainer

    @property
    def checkpointing(self) -> CheckpointArgs:
        """How often checkpoints are written."""
        checkpointing: CheckpointArgs = self.config_init["checkpoint"]
        return checkpointing

    def config_yaml(self) -> str:
        """The whole configuration, from which the run can be made again."""
        return str(self.parser.dump(self.config, skip_none=False))

    def params(self) -> dict[str, Any]:
        """What tells one run from another: every field of model and data, and the main ones of the rest."""
        trainer = self.config["trainer"]
        names = ("max_epochs", "max_steps", "accelerator", "devices", "num_nodes", "strategy", "precision",
                 "gradient_clip_val", "accumulate_grad_batches")  # fmt: skip
        params = {name: trainer[name] for name in names} | {"seed_everything": self.config["seed_everything"]}
        for group in ("model", "data"):
            params[group] = self.config[group]["class_path"].rpartition(".")[2]
            params |= _plain(self.config[group]["init_args"])
        return params


def config_names() -> list[str]:
    """Names of the packaged configurations, such as `zhang/cnn`."""
    root = Path(str(resources.files("lit_mnist") / "configs"))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def config_path(name: str) -> Path:
    """The file of a packaged configuration, or of a path.

    Raises:
        UsageError: there is no such configuration.

    """
    if (path := Path(name)).is_file():
        _check_yaml(path)
        return path
    if name in config_names():
        return Path(str(resources.files("lit_mnist") / "configs" / f"{name}.yaml"))
    raise UsageError(
        f"--config {name}: no such file or packaged configuration{nearest(name, config_names(), listed=True)}"
    )


def _resolved(arguments: list[str]) -> list[str]:
    """The arguments, with packaged names of configurations replaced by their files."""
    resolved = []
    follows = False
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        value = value or "".join(arguments[index + 1 : index + 2])
        if (name == "--trainer.logger" and value != "null") or name.startswith("--trainer.logger."):
            raise UsageError("--trainer.logger has no effect: every run is logged to MLflow")
        if follows:
            argument = str(config_path(argument))
        elif argument.startswith("--config="):
            argument = f"--config={config_path(argument.partition('=')[2])}"
        follows = argument in ("--config", "-c")
        resolved.append(argument)
    if follows:
        raise UsageError("--config needs a name or a path")
    return resolved


def _check_yaml(path: Path) -> None:
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        fields = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {error.problem}" if mark else str(error)  # type: ignore[union-attr]
        raise UsageError(f"--config {path} is not YAML: {where}") from None
    if fields is None:
        raise UsageError(f"--config {path} is empty: it needs fields such as model, data and trainer")
    if not isinstance(fields, dict):
        raise UsageError(f"--config {path} holds no fields such as model, data and trainer")
    _check_unique(path, node)
    for section in ("trainer", "tracking", "checkpoint"):
        if section in fields and not isinstance(fields[section], dict):
            raise UsageError(f"--config {path}: {section} is {fields[section]!r}; give it fields, or leave it out")


def _check_unique(path: Path, node: Any) -> None:
    """Refuse a key given twice in one mapping: YAML would silently keep the last value."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_unique(path, child)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise UsageError(
                        f"--config {path} has {key.value} twice, in lines {lines[key.value]} and {line}: keep one"
                    )
                lines[key.value] = line
            _check_unique(path, child)


def _check_values(config: Namespace) -> None:
    """Refuse values of the right type that torch, numpy or Lightning would fail on later."""
    seed, threads = config["seed_everything"], config["threads"]
    if seed is False or (seed is not None and not 0 <= seed < 2**32):
        shown = "false" if seed is False else seed
        raise UsageError(f"--seed_everything {shown}: take a whole number from 0 to {2**32 - 1}")
    if threads is not None and not 1 <= threads <= 4096:
        raise UsageError(f"--threads {threads}: take a whole number from 1 to 4096, or null")
    accumulate = config["trainer"]["accumulate_grad_batches"]
    if accumulate < 1:
        raise UsageError(f"--trainer.accumulate_grad_batches {accumulate} must be at least 1")
    for group in ("model", "data", "checkpoint"):
        section = config.get(group)
        for name, value in vars(section.as_flat()).items() if isinstance(section, Namespace) else ():
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise UsageError(f"--{group}.{name.removeprefix('init_args.')} {number} must be finite")


def _plain(namespace: Namespace) -> dict[str, Any]:
    return dict(namespace.as_dict())


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
