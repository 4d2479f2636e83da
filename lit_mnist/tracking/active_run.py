"""What a run is told while it is worked on."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lit_mnist.errors import UserError
from lit_mnist.redaction import redact_urls
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.mlflow_writer import relative
from lit_mnist.tracking.journal.uploader import Uploader
from lit_mnist.tracking.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

LONGEST_PARAM = 6000
"""Characters that MLflow takes as a parameter's value."""


@dataclass
class Run:
    """A run that is being worked on; what it is told goes through its spool, and never waits for a store."""

    store: Store
    id: str
    experiment: str
    spool: Journal
    uploader: Uploader
    artifact_uri: str
    mlflow: "MlflowClient | None"
    """None for a run that is offline."""
    steps: dict[str, int] | None = None
    """The largest step of each metric, at or before which nothing is logged again; None allows any."""

    @property
    def folder(self) -> Path:
        """Where the run keeps what it needs while it runs."""
        return self.store.run_folder(self.id)

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client of the run's store.

        Raises:
            UserError: the run is offline.

        """
        if self.mlflow is None:
            raise UserError(f"run {self.id} is offline: `lit-mnist sync` sends it to a tracking store")
        return self.mlflow

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log hyperparameters, lists as JSON; a value too long for MLflow becomes an artifact."""
        texts = {name: _text(value) for name, value in params.items()}
        for name in [name for name, text in texts.items() if len(text) > LONGEST_PARAM]:
            self.log_text(texts[name], f"params/{name}.txt")
            texts[name] = f"see the artifact params/{name}.txt"
        self.spool.append({"kind": "params", "values": texts})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log points of step `step`.

        A run that goes on from an older checkpoint comes by steps that it has logged: those are left out.
        """
        now, step = time.time_ns() // 1_000_000, int(step)
        known = {} if self.steps is None else self.steps
        names = [name for name in metrics if known.get(name, step - 1) < step]
        if names:
            self.spool.append(
                {"kind": "metrics", "points": [[name, float(metrics[name]), now, step] for name in names]}
            )
        if self.steps is not None:
            self.steps |= dict.fromkeys(names, step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.spool.append({"kind": "tags", "values": {name: str(value) for name, value in tags.items()}})

    def log_text(self, text: str, path: str) -> None:
        """Log `text` as the artifact `path`."""
        self.spool.append({"kind": "text", "text": text, "path": path})

    def log_file(self, source: Path, folder: str) -> None:
        """Log the file `source` as an artifact in `folder`; one from outside the run's folder is copied there."""
        if not source.resolve().is_relative_to(self.folder.resolve()):
            source = Path(shutil.copyfile(source, self._waiting(f"{folder}/{source.name}")))
        self.spool.append({"kind": "file", "path": relative(source, self.folder), "folder": folder})

    def log_figure(self, figure: "Figure", name: str) -> str:
        """Log `figure` as the artifact `figures/NAME.png`; returns where it can be looked at."""
        path = self._waiting(f"figures/{name}.png")
        figure.savefig(path, dpi=120)
        self.log_file(path, "figures")
        return self.locate(f"figures/{name}.png")

    def log_dataset(self, name: str, digest: str, profile: Mapping[str, Any]) -> None:
        """Log which images the run learns from."""
        self.spool.append({"kind": "dataset", "name": name, "digest": digest, "profile": dict(profile)})
        self.set_tags({"dataset.name": name, "dataset.digest": digest})

    def submit(self, work: Callable[[], object]) -> None:
        """Do slow work that logs something, beside the training."""
        self.uploader.submit(work)

    def sync(self) -> None:
        """Return when what was logged would survive a power cut.

        Raises:
            UserError: the disk does not take it.

        """
        self.spool.sync()

    def locate(self, artifact: str) -> str:
        """The path of an artifact on this machine, or its URI; while its store is away, where it waits."""
        waiting = self.spool.outbox / artifact
        if self.mlflow is None or (self.uploader.away and waiting.exists()):
            return str(waiting)
        return f"{unquote(redact_urls(self.artifact_uri).removeprefix('file://'))}/{artifact}"

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Step and value of every point of `metric`, in order; needs no store that answers."""
        points = {}
        if self.steps is None:  # somebody who looks at the run: its fit, and who looked before, told the store
            with contextlib.suppress(Exception):
                points = {(p.step, p.timestamp): p.value for p in self.client.get_metric_history(self.id, metric)}
        for spool in (self.spool,) if self.steps is not None else (Journal(self.folder), self.spool):
            points |= {(step, at): value for _, value, at, step in spool.points(metric)}
        return [(step, points[step, at]) for step, at in sorted(points)]

    def data(self) -> "MlflowRun":
        """The run as MLflow has it."""
        return self.client.get_run(self.id)

    def _waiting(self, artifact: str) -> Path:
        """A path in the outbox."""
        path = self.spool.outbox / artifact
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return "null" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
