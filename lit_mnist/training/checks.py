"""Checks before a run is created: whether model, data and Trainer fit together."""

import os

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer

from lit_mnist.errors import UsageError
from lit_mnist.slurm import check_tasks
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.lightning.ranks import forks_processes


def check_fit(cli: LitCLI) -> None:
    """Check that the model fits the data, and that the strategy does not split a model over devices.

    Raises:
        UsageError: the model has too few classes, expects images of another shape, or has early stopping without
            validation; or the strategy is sharded.

    """
    # Checked by name, since Lightning's own error for a missing package would ask to install it.
    strategy = str(cli.config["trainer"]["strategy"])
    for name in ("fsdp", "deepspeed", "model_parallel", "modelparallel"):
        if name in strategy.lower():
            raise UsageError(
                f"--trainer.strategy {name}: checkpoints are single files, which sharded strategies do not write;"
                " take ddp, since every model here fits on one device"
            )
    # The command line takes both values from the data; these checks are for values that a user gives.
    classes, shape = len(cli.datamodule.class_names), list(cli.datamodule.image_shape)
    model = cli.model.hparams
    if model.get("num_classes", classes) < classes:
        raise UsageError(
            f"--model.num_classes {model['num_classes']}: {cli.datamodule.dataset} has {classes} classes"
        )
    if list(model.get("image_shape", shape)) != shape:
        raise UsageError(
            f"--model.image_shape {list(model['image_shape'])}: those of {cli.datamodule.dataset} are {shape}"
        )
    if model.get("patience") is not None and cli.datamodule.hparams["val_size"] == 0:
        raise UsageError(f"--model.patience {model['patience']} has no effect with --data.val_size 0")


def check_trainer(trainer: Trainer, cli: LitCLI) -> None:
    """Check for settings of the Trainer that cannot work, before a run is created.

    Raises:
        UsageError: processes are forked, the batch size is not a multiple of the number of devices, there are
            several nodes without a launcher, or Lightning replaces the precision.

    """
    devices = trainer.world_size // trainer.num_nodes
    check_tasks(devices, trainer.num_nodes)
    if forks_processes(trainer):
        raise UsageError("--trainer.strategy: take ddp; forked or spawned processes cannot share a run's tracking")
    # Checked here and not at the first batch, when the run would already exist.
    cli.datamodule.check_batch_size(trainer.world_size)
    # LightningEnvironment means neither srun nor torchrun. If MASTER_ADDR is set, the user starts the nodes by
    # hand.
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and type(environment) is LightningEnvironment and "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"--trainer.num_nodes {trainer.num_nodes}: nothing has started the other nodes; launch with"
            f" `srun`, or on each node with `torchrun --nnodes {trainer.num_nodes} --rdzv-endpoint HOST:PORT"
            " -m lit_mnist.cli fit ...`"
        )
    # Lightning replaces 16-mixed on a CPU by bf16-mixed, with a warning that is easily missed (2.6).
    wanted = str(cli.config["trainer"]["precision"])
    if wanted in ("16", "16-mixed") and trainer.precision == "bf16-mixed":
        raise UsageError(f"--trainer.precision {wanted}: a CPU has no float16 mixed precision; take bf16-mixed")
