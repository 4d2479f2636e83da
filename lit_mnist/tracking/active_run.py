"""An open run: what can be logged to it. Everything goes to its journal, and never waits for a store."""

import contextlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lit_mnist.errors import UserError
from lit_mnist.redaction import redact_urls
from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.journal.points import Point, Rewind, newest_per_step, stored_points, tagged_rewinds
from lit_mnist.tracking.journal.uploader import Uploader
from lit_mnist.tracking.mlflow_private import LOGGED_IMAGES, MAX_PARAM_LENGTH, image_paths
from lit_mnist.tracking.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from PIL.Image import Image


DESCRIPTION_WIDTH = 1040
"""Pixels of a description's column in MLflow's UI (3.17), in a window of 1280."""


@dataclass
class Run:
    """A run that this process works on; `lit_mnist.tracking.run.open_run` opens it."""

    store: Store
    id: str
    experiment: str
    journal: Journal
    uploader: Uploader
    artifact_uri: str
    mlflow: "MlflowClient | None"
    """None for a run that is offline."""
    steps: dict[str, int] | None = None
    """The last logged step of each metric, up to which nothing is logged again; None allows any step."""
    earliest: int = 0
    """The earliest time of a new point, in milliseconds since 1970: that of the last rewind."""

    @property
    def folder(self) -> Path:
        """The folder with what the run needs while it runs, such as checkpoints."""
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

    @cached_property
    def experiment_id(self) -> str:
        """The id of the run's experiment; empty if the run is offline or its store does not answer."""
        with contextlib.suppress(Exception):  # each kind of store raises its own; the id only serves addresses
            found = self.client.get_experiment_by_name(self.experiment)
            return str(found.experiment_id) if found else ""
        return ""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log hyperparameters, lists as JSON; a value too long for MLflow becomes an artifact."""
        # MLflow stores parameters as strings, and refuses to change a parameter's value.
        texts = {name: _as_text(value) for name, value in params.items()}
        for name in [name for name, text in texts.items() if len(text) > MAX_PARAM_LENGTH]:
            self.log_text(texts[name], f"params/{name}.txt")
            texts[name] = f"see the artifact params/{name}.txt"
        self.journal.append({"kind": "params", "values": texts})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one point per metric, at `step`.

        A resumed run computes the steps after its checkpoint again. With the same configuration their points are
        bit-identical to those already logged, and are skipped; with another one, see `rewind`.
        """
        # Never before a rewind: a reader tells old points from new ones by their time alone.
        now, step = max(time.time_ns() // 1_000_000, self.earliest), int(step)
        known = {} if self.steps is None else self.steps
        # A metric that is not known yet is compared with the step before, so that it is always logged.
        names = [name for name in metrics if known.get(name, step - 1) < step]
        if names:
            # One entry for all metrics of a step: one write, and one line to parse.
            points = [[name, float(metrics[name]), now, step] for name in names]
            self.journal.append({"kind": "metrics", "points": points})
        if self.steps is not None:
            self.steps |= dict.fromkeys(names, step)

    def rewind(self, step: int, changed: bool = True) -> None:
        """Replace the points after `step` by those that are logged from now on.

        Nothing is deleted here. The entry takes effect at once for all readers of the journal, and in the store
        when the uploader sends it. So the process may be killed at any time.

        Args:
            step: The step of the checkpoint from which training continues; -1 if it starts again.
            changed: The configuration differs from that of the last process. Even if it does not, there may have
                been an earlier change after `step`, if a newer checkpoint is damaged.

        """
        if not changed and all(rewind.step <= step for rewind in self.journal.rewinds()):
            return
        # A time later than any point's, so that this rewind replaces every point after `step`.
        after = Rewind(step, sys.maxsize)
        self.steps, replaced_until = {}, 0
        for point in self.journal.points():
            name, _, at, point_step = point
            if after.replaces(point):
                replaced_until = max(replaced_until, at)
            else:
                self.steps[name] = max(point_step, self.steps.get(name, point_step))
        # Later than any point that it replaces, even if this host's clock is behind that of the previous host.
        self.earliest = max(time.time_ns() // 1_000_000, self.earliest, replaced_until + 1)
        self.journal.append({"kind": "rewind", "step": step, "time": self.earliest})
        # Before the new configuration is written: after a power cut in between, points of both configurations
        # would be on one curve.
        self.journal.sync()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.journal.append({"kind": "tags", "values": {name: str(value) for name, value in tags.items()}})

    def log_text(self, text: str, path: str) -> None:
        """Log `text` as the artifact `path`."""
        self.journal.append({"kind": "text", "text": text, "path": path})

    def log_file(self, source: Path, folder: str, copy: bool = False) -> None:
        """Log the file `source` as an artifact in `folder`.

        Args:
            source: The file; a file outside the run's folder is copied.
            folder: The artifact's folder.
            copy: Always copy the file, because it may change before it is sent.

        """
        # Files in the run's folder are sent from their place; others may have been removed when they are sent.
        home = self.folder.resolve()
        if copy or not source.resolve().is_relative_to(home):
            target = self._outbox_path(f"{folder}/{source.name}")
            # Renamed after copying, since the uploader may be reading an earlier copy with the same name.
            source = Path(shutil.copyfile(source, target.with_name(f".{target.name}"))).replace(target)
        # A path relative to the run's folder, so that the project can be moved before the file is sent.
        self.journal.append({"kind": "file", "path": str(source.resolve().relative_to(home)), "folder": folder})

    def delete_artifact(self, path: str) -> None:
        """Delete an artifact that was logged before, if the store can delete artifacts."""
        self.journal.append({"kind": "delete", "path": path})

    def log_figure(self, figure: "Figure", name: str) -> str:
        """Log `figure` as the artifact `figures/NAME.png`; returns its path or URI (see `locate`)."""
        path = self._outbox_path(f"figures/{name}.png")
        # MLflow shows images in descriptions at their own size, and cuts them off at the edge of the column.
        figure.savefig(path, dpi=min(120.0, DESCRIPTION_WIDTH / figure.get_figwidth()))
        self.log_file(path, "figures")
        return self.locate(f"figures/{name}.png")

    def log_image(self, image: "Image", key: str, step: int) -> None:
        """Log `image` for `step` of the series `key`, which MLflow shows with a slider over the steps.

        If a resumed run logs an image of the same step again, it replaces the earlier one.
        """
        # The same image for both files, since these images are small and need no thumbnail.
        for path in image_paths(key, int(step)):
            target = self._outbox_path(path)
            image.save(target)
            self.log_file(target, "images")
        # Without this tag the UI does not look for images.
        self.set_tags({LOGGED_IMAGES: "True"})

    def log_dataset(self, name: str, digest: str, profile: Mapping[str, Any]) -> None:
        """Log the dataset of the run: name, checksum, and size of each split."""
        self.journal.append({"kind": "dataset", "name": name, "digest": digest, "profile": dict(profile)})
        # Also as tags, which the UI's table shows as columns.
        self.set_tags({"dataset.name": name, "dataset.digest": digest})

    def submit(self, task: Callable[[], object]) -> None:
        """Run a slow logging task in the background of training."""
        self.uploader.submit(task)

    def sync(self) -> None:
        """Flush all logged data to the disk, so that it survives a power cut.

        Raises:
            UserError: the data cannot be written.

        """
        self.journal.sync()

    def locate(self, artifact: str) -> str:
        """The path or URI of an artifact; while the store is unreachable, its path in the outbox."""
        waiting = self.journal.outbox / artifact
        if self.mlflow is None or (self.uploader.away and waiting.exists()):
            return str(waiting)
        # MLflow stores paths as URIs, in which a space is %20.
        return f"{unquote(redact_urls(self.artifact_uri).removeprefix('file://'))}/{artifact}"

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Step and value of the points of `metric`, one per step, in order; works without the store."""
        points: list[Point] = []
        if self.steps is None:
            # The run was opened by `run_id`, so this journal has only the points of this process. Those of the fit
            # and of others are in the store, or still unsent in the fit's journal.
            fit = Journal(self.folder)
            with contextlib.suppress(Exception):
                rewinds = [*tagged_rewinds(self.data().data.tags), *fit.rewinds()]
                points += stored_points(self.client, self.id, metric, rewinds)
            points += fit.points(metric)
        points += self.journal.points(metric)
        return [(step, value) for _, value, _, step in newest_per_step(points)]

    def tags(self) -> dict[str, str]:
        """The run's tags in its journal, and those in the store if it is reachable."""
        # The journal alone may be incomplete, if the run's folder was fetched from the store.
        tags: dict[str, str] = {}
        if self.mlflow is not None:
            with contextlib.suppress(Exception):  # each kind of store has its own exceptions
                tags |= self.data().data.tags
        for _, entry in self.journal.entries():
            if entry["kind"] == "tags":
                tags |= entry["values"]
        return tags

    def data(self) -> "MlflowRun":
        """The run as stored in MLflow."""
        return self.client.get_run(self.id)

    def _outbox_path(self, artifact: str) -> Path:
        path = self.journal.outbox / artifact
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return "null" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
