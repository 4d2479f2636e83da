"""Studies as a sweep leaves them, with trials that are made up or have real runs."""

import math
import random
from collections.abc import Mapping
from typing import Any

import optuna
from conftest import MINI
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.tracking.process import this_host, this_process
from lit_mnist.training.fit import fit

SPACE = {
    "model.lr": FloatDistribution(0.01, 1.0, log=True),
    "model.momentum": FloatDistribution(0.0, 0.99),
    "model.batch_norm": CategoricalDistribution([False, True]),
}
QUIET = ("--trainer.enable_progress_bar", "false", "--tracking.figures", "false")
GIVEN = {"model.lr": 0.05, "model.momentum": 0.99}
"""The point that the user gave to be tried first."""
# The config comes first: it names a dataset that --data then replaces.
BASE = ("--config", "zhang/cnn", *MINI, "--model.channels", "[2,4]", "--data.train_size", "null",
        "--data.train_per_class", "8", "--data.val_size", "100", "--trainer.max_epochs", "2",
        "--trainer.log_every_n_steps", "1", "--model.optimizer", "sgd", *QUIET)  # fmt: skip


def make_study(
    name: str = "lrs",
    objectives: tuple[tuple[str, str], ...] = (("best/val/acc", "maximize"),),
    seeds: tuple[int, ...] = (0,),
    trials: int = 6,
    storage: optuna.storages.BaseStorage | None = None,
    points: tuple[Mapping[str, Any], ...] = (),
) -> optuna.Study:
    """A study without trials; in memory if no storage is given."""
    study = optuna.create_study(study_name=name, storage=storage, directions=[way for _, way in objectives])
    stored = {
        "goals": [{"metric": m, "direction": d} for m, d in objectives],
        "seeds": seeds,
        "points": points,
        "sampler": "tpe",
    }
    for key, value in {"stored": stored, "spec": "", "trials": trials}.items():
        study.set_user_attr(key, value)
    return study


def add_trial(
    study: optuna.Study,
    state: TrialState,
    lr: float = 0.1,
    momentum: float = 0.5,
    mean: tuple[float, ...] | None = None,
    **attrs: Any,
) -> None:
    """Add a trial in this state, with `mean` as its value of each objective."""
    params = {"model.lr": lr, "model.momentum": momentum, "model.batch_norm": lr > 0.3}
    attrs = {"point": {**params, "model.channels": [2, 4]}, "seconds": 2.0, **attrs}
    reported = attrs.pop("reported", {})
    fields = {"values": mean, "params": params, "distributions": SPACE, "intermediate_values": reported}
    study.add_trial(create_trial(state=state, user_attrs=attrs, **fields))


def made_up_study(
    count: int, objectives: tuple[tuple[str, str], ...] = (("val/acc", "maximize"),)
) -> optuna.Study:
    """A study with made-up values: momentum has no effect, every sixth trial is pruned, and one failed."""
    study = make_study(objectives=objectives, trials=count, points=(GIVEN,))
    numbers = random.Random(0)
    for number in range(count):
        lr, momentum = (0.05, 0.99) if number == 0 else (10 ** numbers.uniform(-2, 0), numbers.uniform(0, 0.9))
        value = 0.1135 if number == 0 else 0.97 - 0.2 * (math.log10(lr) + 1) ** 2
        values = (value, 1000 * lr)[: len(objectives)]
        ended = TrialState.FAIL if number == 3 else TrialState.PRUNED if number % 6 == 5 else TrialState.COMPLETE
        add_trial(study, ended, lr, momentum, values if ended == TrialState.COMPLETE else None)
    return study


def train(seed: int, lr: float) -> tuple[str, float]:
    """Train a run; returns its id and its best accuracy."""
    flags = ["--model.lr", str(lr), "--model.momentum", "0.5", "--seed_everything", str(seed)]
    result = fit([*BASE, *flags], tags={"sweep.study": "lrs", "sweep.seed": str(seed)})
    assert result is not None
    return result.run_id, result.metrics["best/val/acc"]


def real_study(dead: str) -> optuna.Study:
    """A study in the project's storage with two complete trials, one pruned, one failed and two unfinished ones.

    The complete trials have real runs with two seeds.

    Args:
        dead: A process that has ended, the owner of one of the unfinished trials.

    """
    study = make_study(seeds=(0, 1), trials=8, storage=open_storage(None))
    for lr in (0.03, 0.5):
        runs, values = zip(*(train(seed, lr) for seed in (0, 1)), strict=True)
        add_trial(study, TrialState.COMPLETE, lr, 0.5, (sum(values) / 2,), runs=runs, values=[[v] for v in values])
    add_trial(study, TrialState.PRUNED, 0.02, reason="at epoch 1: 0.1", reported={0: 0.1})
    add_trial(study, TrialState.FAIL, 0.9, reason="val/loss is nan")
    owner = {"host": this_host(), "worker": 1, "beat": 0}
    add_trial(
        study, TrialState.RUNNING, 0.2, owner={**owner, "process": this_process()}, reported={0: 0.25, 1: 0.5}
    )
    add_trial(study, TrialState.RUNNING, 0.3, owner={**owner, "process": dead})
    return study


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials of the study."""
    return study.get_trials(states=(TrialState.COMPLETE,))
