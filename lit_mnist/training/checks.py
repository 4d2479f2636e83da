"""What `fit` refuses before there is a run: models, data and Trainers that do not fit together."""

import os

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer

from lit_mnist.errors import UsageError
from lit_mnist.slurm import check_tasks
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.lightning.ranks import forks_processes


def check_fit(cli: LitCLI) -> None:
    """Refuse a model that cannot take the data, and strategies that split a model over devices.

    Raises:
        UsageError: the model has too few classes, takes images of another shape, or stops early by a validation
            that does not take place; or the strategy is sharded.

    """
    # By name, since Lightning's own error for a strategy whose package is missing would ask to install it.
    strategy = str(cli.config["trainer"]["strategy"])
    for name in ("fsdp", "deepspeed", "model_parallel", "modelparallel"):
        if name in strategy.lower():
            raise UsageError(
                f"--trainer.strategy {name}: checkpoints are single files, which sharded strategies do not write;"
                " take ddp, since every model here fits on one device"
            )
    # The command line sets both to those of the data; these are for values that a user gives.
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
    """Refuse, before there is a run, settings of the Trainer that cannot work.

    Raises:
        UsageError: processes are forked, the batch size is no multiple of the devices, there are several nodes and
            no launcher, or the precision is replaced by another one.

    """
    devices = trainer.world_size // trainer.num_nodes
    check_tasks(devices, trainer.num_nodes)
    if forks_processes(trainer):
        raise UsageError("--trainer.strategy: take ddp; forked or spawned processes cannot share a run's tracking")
    # Now, and not at the first batch, when the run would exist already.
    cli.datamodule.check_batch_size(trainer.world_size)
    # LightningEnvironment: neither srun nor torchrun. With MASTER_ADDR set, the user starts the nodes by hand.
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
