"""A trial's training on several devices, in processes of its own.

Lightning starts the other ranks by running the command line of the first one again. A worker's command line would
start a sweep, so the worker runs `lit-mnist sweep trial JOB` as rank 0 (`run_job`), and Lightning repeats that.
Files in a temporary folder hand over the job and its result.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_mnist.errors import UserError
from lit_mnist.guard import ERROR
from lit_mnist.signals import SignalWatch
from lit_mnist.sweeps.search.optuna_private import load_trial
from lit_mnist.sweeps.search.samplers import make_pruner
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import stored_spec
from lit_mnist.sweeps.workers.errors import (
    InfrastructureError,
    affects_all_trials,
    describe_error,
    is_infrastructure_error,
)
from lit_mnist.sweeps.workers.parent_watch import ParentWatch
from lit_mnist.sweeps.workers.reporter import Reporter
from lit_mnist.training.fit import fit
from lit_mnist.training.lightning.ranks import RANK_0
from lit_mnist.training.stages import suppress_stdout

JOB, RESULT, INFRASTRUCTURE_ERROR, STDERR = "job.json", "result.json", "infrastructure_error.json", "stderr"
GROUP_SAVE_TIMEOUT = 90.0
"""Seconds that a training on several devices has to save after a signal, before all its ranks are killed.

Less than `parent_watch.SAVE_TIMEOUT`, after which the worker that would kill them is killed itself.
"""


@dataclass
class Job:
    """One training of a trial, as it is handed to its processes."""

    study: str
    number: int
    """The trial's."""
    seed: int
    arguments: Sequence[str]
    """Those of `lit-mnist fit`."""
    tags: Mapping[str, str]
    """Of a new MLflow run."""
    reports: bool
    """True if the pruner sees the value of each validation."""
    validations: int
    """Of the study's longest training."""
    owner: Mapping[str, Any]
    """The worker to which the trial is leased."""
    begun: float
    """When the work on the training began, by `time.monotonic`."""


def fit_distributed(job: Job, signals: SignalWatch) -> dict[str, Any]:
    """Train in processes of its own; return `run` (the id), `metrics`, and `reason` if the trial was pruned.

    Raises:
        Interrupted: a signal came.
        InfrastructureError: training stopped for a reason that may not be the trial's.
        UserError: training failed.

    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # As a file and not as arguments, which Lightning repeats for each rank and `ps` shows to everybody.
        (folder / JOB).write_text(json.dumps(vars(job)))
        with (folder / STDERR).open("w+") as errors:
            command = [sys.executable, "-m", "lit_mnist.cli", "sweep", "trial", str(folder / JOB)]
            # The pipe to its standard input ends with this worker, see `ParentWatch`. The new session makes the
            # process the leader of a group of all ranks, which can be killed as one.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            with process:
                wait_or_kill(process, signals)
            errors.seek(0)
            lines = errors.read().splitlines()
        # After a signal, whatever the process has said is about being interrupted.
        signals.check()
        if (folder / INFRASTRUCTURE_ERROR).exists():
            raise InfrastructureError(**json.loads((folder / INFRASTRUCTURE_ERROR).read_text()))
        # Our own error line if there is one, or else the last thing that was written.
        if process.returncode:
            lines = [line for line in lines if line.startswith(ERROR)] or lines
            raise UserError(lines[-1].removeprefix(ERROR) if lines else f"exit code {process.returncode}")
        result: dict[str, Any] = json.loads((folder / RESULT).read_text())
        return result


def wait_or_kill(process: "subprocess.Popen[bytes]", signals: SignalWatch) -> None:
    """Wait for the leader of a process group; pass a signal on, and kill the group if it does not end after that.

    A rank that waits in a collective operation for one that has died never looks at signals (NCCL waits for
    10 minutes). Without SIGKILL it would keep its GPU after the sweep has ended.
    """
    deadline = None
    while process.poll() is None:
        # To the leader only: `RankConsensus` makes all ranks stop at the same step.
        if signals.received is not None and deadline is None:
            deadline = time.monotonic() + GROUP_SAVE_TIMEOUT
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signals.received)
        if deadline is not None and time.monotonic() > deadline:
            # The group's number cannot have been given to other processes: its leader is not yet waited for.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)


def run_job(path: Path) -> None:
    """Train a job as rank 0, or as one of the other ranks, which Lightning starts with the same command line.

    Args:
        path: The file with the job. Only rank 0 reports to the study and writes a result beside this file.

    """
    # Every rank runs this; Lightning tells the others from rank 0 by an environment variable.
    job = Job(**json.loads(path.read_text()))
    is_rank_0 = RANK_0 not in os.environ
    with SignalWatch() as signals:
        if is_rank_0:
            ParentWatch(signals)
        study = open_study(open_storage(None), job.study)
        spec = stored_spec(study)
        # The pruner alone: the point was suggested by the worker, and no rank samples anything.
        study.pruner = make_pruner(spec, job.validations)
        trial = load_trial(study, job.number) if is_rank_0 else None
        pruned = trial.user_attrs.get("pruned") if trial is not None and job.reports else None
        run_ids: list[str] = []
        reporter = Reporter(spec.objectives[0], trial, job.reports, job.seed, pruned, run_ids.append)
        reporter.owner, reporter.begun = job.owner, job.begun
        try:
            with suppress_stdout():
                result = fit(list(job.arguments), [reporter], signals, job.tags, leased=True)
        except Exception as error:
            # A file, since an exit code and a line of text cannot say whether it concerns this trial alone.
            if is_infrastructure_error(error):
                fields = {"text": describe_error(error), "affects_all_trials": affects_all_trials(error)}
                path.with_name(INFRASTRUCTURE_ERROR).write_text(json.dumps(fields))
            raise
        if result is not None:
            metrics = {**result.metrics, **reporter.measured()}
            fields = {"run": run_ids[0], "metrics": metrics, "reason": reporter.reason}
            path.with_name(RESULT).write_text(json.dumps(fields))
