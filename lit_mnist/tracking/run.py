"""A run's life in MLflow: one id, one folder, one status at a time."""

import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lit_mnist.errors import UsageError, UserError
from lit_mnist.tracking.provenance import user_name
from lit_mnist.tracking.sender import Sender
from lit_mnist.tracking.store import Store, connect, experiment_id, find_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

LONGEST_PARAM = 6000
"""Characters that MLflow takes as a parameter's value."""


class Interrupted(Exception):  # noqa: N818 - not an error: somebody wants the process to end
    """A signal asked the run to end; `signal` is its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


@dataclass
class Run:
    """A run that is being worked on; everything but `status` goes through its sender."""

    store: Store
    client: "MlflowClient"
    id: str
    experiment: str
    sender: Sender
    _steps: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the run keeps what it needs while it runs."""
        return self.store.run_folder(self.id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log hyperparameters, lists as JSON; a value too long for MLflow becomes an artifact."""
        from mlflow.entities import Param

        texts = {name: _text(value) for name, value in params.items()}
        for name in [name for name, text in texts.items() if len(text) > LONGEST_PARAM]:
            self.log_text(texts[name], f"params/{name}.txt")
            texts[name] = f"see the artifact params/{name}.txt"
        entities = [Param(name, text) for name, text in texts.items()]
        for i in range(0, len(entities), 100):  # as many as MLflow takes in one call
            chunk = entities[i : i + 100]
            self.sender.submit(lambda chunk=chunk: self.client.log_batch(self.id, params=chunk))  # type: ignore[misc]

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log points of step `step`; a second point of `epoch` at one step is left out."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        points = []
        for name, value in metrics.items():
            if name == "epoch" and self._steps.get(name) == step:
                continue
            self._steps[name] = step
            points.append(Metric(name, float(value), now, step))
        self.sender.send(points)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        self.sender.submit(lambda: self.client.log_batch(self.id, tags=entities))

    def log_text(self, text: str, path: str) -> None:
        """Log `text` as the artifact `path`."""
        self.sender.submit(lambda: self.client.log_text(self.id, text, path))

    def log_file(self, source: Path, folder: str) -> None:
        """Log the file `source` as an artifact in `folder`, now."""
        self.client.log_artifact(self.id, str(source), folder)

    def log_figure(self, figure: "Figure", name: str) -> str:
        """Log `figure` as the artifact `figures/NAME.png`; returns where it can be looked at."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.png"
            figure.savefig(path, dpi=120)
            self.log_file(path, "figures")
        return self.locate(f"figures/{name}.png")

    def log_dataset(self, name: str, digest: str, profile: Mapping[str, Any]) -> None:
        """Log which pictures the run learns from."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", json.dumps({"name": name}), profile=json.dumps(profile))
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
        self.client.log_inputs(self.id, [entry])
        self.client.set_tag(self.id, "dataset.name", name)
        self.client.set_tag(self.id, "dataset.digest", digest)

    def locate(self, artifact: str) -> str:
        """The path of an artifact on this machine, or its URI."""
        root = self.client.get_run(self.id).info.artifact_uri
        return f"{unquote(root.removeprefix('file://'))}/{artifact}"

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Step and value of every point of `metric`, in order."""
        self.sender.flush()
        points = self.client.get_metric_history(self.id, metric)
        return sorted((p.step, p.value) for p in points)

    def data(self) -> "MlflowRun":
        """The run as MLflow has it."""
        return self.client.get_run(self.id)


@contextmanager
def open_run(
    experiment: str, name: str | None = None, run_id: str | None = None, system_metrics: bool = True
) -> Iterator[Run]:
    """A new run, or the run `run_id` again: RUNNING inside, FINISHED, FAILED or KILLED after.

    Args:
        experiment: MLflow experiment of a new run.
        name: What the run is called in the UI; without it, a name that MLflow makes up.
        run_id: A run to go on with, whose status is left as it was found.
        system_metrics: Whether to sample the machine's load.

    Raises:
        UserError: the store cannot be opened, or the run is not in it.

    """
    store = find_store()
    client = connect(store)
    if run_id is None:
        store.home.mkdir(parents=True, exist_ok=True)
        info = client.create_run(experiment_id(client, store, experiment), run_name=name, tags=_source()).info
        run = Run(store, client, info.run_id, experiment, Sender(client, info.run_id, system_metrics))
        with _status(run):
            run.folder.mkdir(parents=True, exist_ok=True)
            yield run
        return
    info = find_run(client, store, run_id).info
    run = Run(store, client, info.run_id, experiment, Sender(client, info.run_id, system=False))
    try:
        yield run
    finally:
        run.sender.close()


def find_run(client: "MlflowClient", store: Store, run_id: str) -> "MlflowRun":
    """The run whose id is, or uniquely begins with, `run_id`.

    Raises:
        UserError: there is no such run, or more than one.

    """
    found: Sequence[MlflowRun] = []
    if re.fullmatch("[0-9a-f]+", run_id):
        experiments = [e.experiment_id for e in client.search_experiments()]
        found = client.search_runs(experiments, f"attributes.run_id LIKE '{run_id}%'", max_results=2)
    if len(found) == 1:
        return found[0]
    what = "more than one run begins with" if found else "no run"
    raise UsageError(f"{what} {run_id!r} in {store.uri}; `lit-mnist runs` lists the runs")


def clean_folder(run: Run) -> None:
    """Remove the folder of a run that needs it no longer."""
    shutil.rmtree(run.folder, ignore_errors=True)


@contextmanager
def _status(run: Run) -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except Exception as error:
        run.set_tags({"error": f"{type(error).__name__}: {error}"[:LONGEST_PARAM]})
        raise
    finally:
        try:
            run.sender.close()
        except UserError:
            status = "FAILED" if status == "FINISHED" else status
            raise
        finally:
            run.client.set_terminated(run.id, status)


def _source() -> dict[str, str]:
    return {
        "mlflow.source.name": " ".join(["lit-mnist", *sys.argv[1:]]),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
    }


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return "null" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
