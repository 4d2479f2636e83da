"""The configuration of a fit: YAML files, overridden by flags, and checked against the classes that they name."""

import argparse
import importlib
import inspect
import math
import re
import warnings
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import torch
import yaml
from jsonargparse import ArgumentError, Namespace, get_loader, set_loader
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_mnist.data import ImageDataModule
from lit_mnist.errors import UsageError, nearest
from lit_mnist.models import LitModel
from lit_mnist.strict_yaml import check_unique_keys
from lit_mnist.training.config_errors import (
    GROUPS,
    class_names,
    explain,
    is_base_class,
    library_errors,
)
from lit_mnist.training.config_files import config_path
from lit_mnist.training.lightning.fast_step import QuietProfiler
from lit_mnist.training.lightning.signals import disable_signal_handlers

# num_sanity_val_steps 0: the sanity check takes time, and the models log nothing during it.
TRAINER_DEFAULTS = {
    "max_epochs": 10,
    "devices": 1,
    "log_every_n_steps": 50,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
LOGGER_REFUSED = "--trainer.logger has no effect: every run is logged to MLflow"

_load_yaml = get_loader("yaml")


def _load_strict_yaml(text: str) -> Any:
    """Read a flag's value or a file as jsonargparse does, but reject duplicate keys."""
    if ":" in text:  # without a colon there is no mapping
        try:
            check_unique_keys(text)
        except UsageError as error:
            raise UsageError(f"{' '.join(text.split())[:80]}, {error}") from None
    return _load_yaml(text)


# jsonargparse reads files and single values with this loader.
set_loader("yaml", _load_strict_yaml, exceptions=(yaml.YAMLError,))


@dataclass(frozen=True)
class FitOptions:
    """The options of `fit` that are not part of the configuration: they affect the process, not the training."""

    resume: str | None = None
    """The run to resume: its id, its beginning, or `last`."""
    key: str | None = None
    """The user's own name for a run, which is resumed if it exists and started otherwise."""
    offline: bool = False
    """Contact no tracking store."""

    @classmethod
    def split_off(cls, arguments: list[str]) -> "tuple[FitOptions, list[str]]":
        """Split the arguments of `lit-mnist fit` into these options and the flags of `LitCLI`.

        Raises:
            UsageError: an option has no value or an invalid one.

        """
        # Not parsed by LitCLI, which would store them in the run's configuration and repeat them at each resume.
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--resume")
        parser.add_argument("--key")
        parser.add_argument("--offline", action="store_true")
        try:
            known, flags = parser.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            if error.argument_name == "--key":
                raise UsageError("--key needs a name, which this command's run is found by later") from None
            raise UsageError("--resume needs a run's id, its beginning, or last") from None
        if known.key is not None and not re.fullmatch(r"\w[\w.-]*", known.key):
            raise UsageError(f"--key {known.key!r}: letters, digits, dots, dashes and underscores only")
        if known.key is not None and known.resume is not None:
            raise UsageError("--key finds the run to resume itself: leave --resume out")
        if known.resume is not None and not known.resume.strip():
            raise UsageError("--resume is empty: it needs a run's id, its beginning, or last")
        return cls(known.resume, known.key, known.offline), flags


class TrackingArgs:
    """How a run appears in MLflow."""

    def __init__(
        self,
        experiment: str = "lit_mnist",
        name: str | None = None,
        system_metrics: bool | None = None,
        figures: bool = True,
        keep_checkpoints: Literal["all", "best", "none"] = "all",
    ) -> None:
        """Store the arguments.

        Args:
            experiment: MLflow experiment that the run belongs to.
            name: Name of the run in the UI; by default, model, dataset and seed.
            system_metrics: Whether to sample the load of processor, memory, disk, network and GPU; null for after
                the first minute only.
            figures: Whether to draw loss curves, and the predictions for the validation images.
            keep_checkpoints: Checkpoints that a finished run keeps; without the last one it cannot be resumed with
                more epochs. A run that is interrupted keeps both.

        """
        self.experiment, self.name = experiment, name
        self.system_metrics, self.figures = system_metrics, figures
        self.keep_checkpoints = keep_checkpoints


@dataclass(frozen=True)
class CheckpointArgs:
    """How often a checkpoint for resuming is written."""

    every_n_steps: int | None = 500
    """Optimiser steps between two checkpoints; null switches them off."""
    every_n_minutes: float | None = 5.0
    """Minutes between two checkpoints, whichever comes first; null switches them off."""
    upload_every_n_minutes: float | None = 10.0
    """Minutes between two copies of the newest checkpoint to the artifact store, in case this machine is lost."""

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "every_n_minutes", "upload_every_n_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"--checkpoint.{name} {value} must be above 0; null switches it off")


class LitCLI(LightningCLI):
    """Parses the arguments of `fit` with LightningCLI, and creates model and data; trains nothing.

    The Trainer is created later, by `make_trainer`: its callbacks write to a run that does not exist yet.

    Args:
        arguments: Flags, of which `--config` may name a packaged configuration.

    Raises:
        UserError: a flag or a configuration is wrong.

    """

    model: LitModel
    datamodule: ImageDataModule

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            LitModel,
            ImageDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            # LightningCLI's default is a random seed, but a run must be repeatable from its configuration.
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": "lit-mnist fit"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=_resolve_configs(arguments),
            run=False,
            # Models create their optimisers from plain hyperparameters, which load with weights_only=True.
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints hold plain constructor arguments
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups `tracking` and `checkpoint`, and `--threads`."""
        parser.add_class_arguments(TrackingArgs, "tracking")
        parser.add_class_arguments(CheckpointArgs, "checkpoint")
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="CPU threads; another number rounds sums differently. null leaves the number to torch",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and check the arguments; every error becomes a UsageError of one line."""
        try:
            # With exit_on_error=False an error is raised instead of printed.
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise UsageError(explain(str(error))) from error
        _check_values(self.config)
        for group in ("data", "model"):
            # jsonargparse (4.53) has no `init_args` for a class without arguments.
            if "init_args" not in self.config[group]:
                self.config[group]["init_args"] = Namespace()  # type: ignore[no-untyped-call]
        self._fit_model_to_data(parser, args)

    def _fit_model_to_data(self, parser: LightningArgumentParser, args: Any) -> None:
        """Set the model's image_shape and num_classes to the dataset's, unless a flag or a file gives them."""
        data, model = (self.config[group] for group in ("data", "model"))
        # The data module's class has the dataset's specification, so no image has to be read.
        cls: Any = _class(data["class_path"])
        spec = cls.spec
        known = {"image_shape": list(spec.image_shape), "num_classes": spec.num_classes}
        own = model["init_args"]
        if any(name in own and own[name] != value for name, value in known.items()):
            # Without defaults, the result holds only what the user gave (jsonargparse 4.53).
            given = parser.parse_args(args, defaults=False)["model"].get("init_args", {})
            for name, value in known.items():
                if name in own and name not in given:
                    own[name] = value

    def before_instantiate_classes(self) -> None:
        """Use the run's seed for the data unless the data has its own."""
        # Users may set them separately, for example to vary the weights on one split.
        arguments = self.config["data"]["init_args"]
        if arguments.get("seed") is None:
            arguments["seed"] = self.config["seed_everything"]

    def instantiate_classes(self) -> None:
        """Create model and data."""
        with library_errors("model or data"):
            try:
                super().instantiate_classes()
            except ValueError as error:
                # jsonargparse wraps a constructor's exception in one that lists every alternative of the type.
                raise (error.__cause__ or error) from None

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Do nothing: see `make_trainer`."""

    def make_trainer(self, **kwargs: Any) -> Trainer:
        """Create the Trainer of the configuration.

        Args:
            kwargs: Arguments of the Trainer that override the configuration's, except `callbacks` and `plugins`,
                which are added to it.

        Raises:
            UsageError: the Trainer refuses its arguments.

        """
        # `config_init` holds the objects, such as callbacks, that were created from `config`.
        config = dict(self.config_init["trainer"])
        if config["logger"] is not None:
            raise UsageError(LOGGER_REFUSED)
        # Ours first: the checkpoint of a step is written before another callback begins the next one.
        config["callbacks"] = [*kwargs.pop("callbacks", []), *_as_list(config.get("callbacks"))]
        config["plugins"] = [*_as_list(config.get("plugins")), *kwargs.pop("plugins", [])]
        if config["profiler"] is None:
            # Lightning calls its profiler some forty times a step.
            config["profiler"] = QuietProfiler()
        if config["deterministic"] is None and torch.cuda.is_available():
            # With True, an operation without a deterministic version on the GPU would be an error.
            config["deterministic"] = "warn"
        # The flag is for a progress bar among the user's callbacks; this project's is an ordinary callback.
        has_bar = any(isinstance(callback, ProgressBar) for callback in config["callbacks"])
        config["enable_progress_bar"] = has_bar and config["enable_progress_bar"] is not False
        with library_errors("--trainer"), warnings.catch_warnings():
            # Lightning (2.5 to 2.6) warns on every host that has SLURM installed, also outside a job.
            warnings.filterwarnings("ignore", message="The `srun` command is available on your system")
            trainer = Trainer(**{**config, **kwargs})
        # SignalWatch handles signals; the training ends at the next batch.
        disable_signal_handlers(trainer)
        return trainer

    @property
    def checkpointing(self) -> CheckpointArgs:
        """How often checkpoints are written."""
        checkpointing: CheckpointArgs = self.config_init["checkpoint"]
        return checkpointing

    def config_yaml(self) -> str:
        """The whole configuration as YAML; the run can be repeated from it."""
        return str(self.parser.dump(self.config, skip_none=False))

    def params(self) -> dict[str, Any]:
        """The parameters logged to MLflow: every field of model and data, and the trainer's main ones."""
        trainer = self.config["trainer"]
        names = ("max_epochs", "max_steps", "accelerator", "devices", "num_nodes", "strategy", "precision",
                 "gradient_clip_val", "accumulate_grad_batches")  # fmt: skip
        # Only some fields of the Trainer: with all of them, MLflow's table would have forty more columns.
        params = {name: trainer[name] for name in names} | {"seed_everything": self.config["seed_everything"]}
        for group in ("model", "data"):
            params[group] = self.config[group]["class_path"].rpartition(".")[2]
            params |= self.config[group]["init_args"].as_dict()
        return params


def _resolve_configs(arguments: list[str]) -> list[str]:
    """The arguments, with the names of packaged configurations replaced by their paths."""
    resolved = []
    is_config = False
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        value = value or "".join(arguments[index + 1 : index + 2])
        # Checked before parsing, since jsonargparse would first report errors in the logger's own arguments.
        if (name == "--trainer.logger" and value != "null") or name.startswith("--trainer.logger."):
            raise UsageError(LOGGER_REFUSED)
        if is_config:
            argument = str(config_path(argument))
        elif argument.startswith("--config="):
            argument = f"--config={config_path(argument.partition('=')[2])}"
        is_config = argument in ("--config", "-c")
        resolved.append(argument)
    if is_config:
        raise UsageError("--config needs a name or a path")
    return resolved


def _check_values(config: Namespace) -> None:
    """Reject values of the right type that would later cause unclear errors in torch, numpy or Lightning."""
    # LightningCLI accepts `true` for a random seed, and `false` for none, which would make a run not repeatable.
    seed, threads = config["seed_everything"], config["threads"]
    if seed is False or (seed is not None and not 0 <= seed < 2**32):
        shown = "false" if seed is False else seed
        raise UsageError(f"--seed_everything {shown}: take a whole number from 0 to {2**32 - 1}")
    if threads is not None and not 1 <= threads <= 4096:
        raise UsageError(f"--threads {threads}: take a whole number from 1 to 4096, or null")
    # The type hints of these constructors show which fields may be null.
    classes = {"trainer": Trainer, "tracking": TrackingArgs, "checkpoint": CheckpointArgs}
    classes |= {group: _class(config[group]["class_path"]) for group in ("model", "data")}
    for group, cls in classes.items():
        if group in ("model", "data") and is_base_class(cls):
            hint = nearest(cls.__name__, class_names(GROUPS[group]), listed=True)
            raise UsageError(f"--{group} {cls.__name__} is a base class, which does nothing by itself{hint}")
        fields = config[group].get("init_args", {}) if group in ("model", "data") else config[group]
        # jsonargparse (4.53) accepts null for every argument, whatever its type.
        for name, value in dict(fields).items():
            if value is None and (expected := _type_without_null(cls, name)):
                raise UsageError(f"--{group}.{name}: expected {expected}, not null")
    accumulate = config["trainer"]["accumulate_grad_batches"]
    if accumulate < 1:
        raise UsageError(f"--trainer.accumulate_grad_batches {accumulate} must be at least 1")
    for group in ("model", "data", "checkpoint", "trainer"):
        section = config.get(group)
        for name, value in vars(section.as_flat()).items() if isinstance(section, Namespace) else ():
            for number in value if isinstance(value, list | tuple) else [value]:
                # YAML and Python's float accept `nan` and `inf`, and range checks do not catch NaN.
                if isinstance(number, float) and not math.isfinite(number):
                    raise UsageError(f"--{group}.{name.removeprefix('init_args.')} {number} must be finite")


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    cls: type = getattr(importlib.import_module(module), name)
    return cls


def _type_without_null(cls: type, name: str) -> str | None:
    """Name of the type of the argument `name` of `cls`, or None if that type includes None.

    For the check of null, which jsonargparse accepts for every type.
    """
    for base in cls.__mro__:
        if "__init__" in vars(base) and name in inspect.signature(vars(base)["__init__"]).parameters:
            hint = get_type_hints(vars(base)["__init__"]).get(name, Any)
            if hint is Any or NoneType in get_args(hint):
                return None
            return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
