"""A trial's training on several devices, in separate processes.

Lightning starts the other ranks by running the command line of the first rank again. A worker's command line would
start a sweep, so the worker runs `lit-mnist sweep trial JOB` as rank 0 (`run_job`), and Lightning repeats that
command. The job and its result are passed in files in a temporary folder.
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

It is less than `parent_watch.SAVE_TIMEOUT`, after which the worker itself is killed.
"""


@dataclass
class Job:
    """The description of one training of a trial for its separate processes."""

    study: str
    number: int
    """The trial's number."""
    seed: int
    arguments: Sequence[str]
    """Arguments of `lit-mnist fit`."""
    tags: Mapping[str, str]
    """Tags of a new MLflow run."""
    reports: bool
    """True to report the value of each validation to the pruner."""
    validations: int
    """Number of validations of the study's longest training."""
    owner: Mapping[str, Any]
    """The worker to which the trial is leased."""
    begun: float
    """When the work on the training began, by `time.monotonic`."""


def fit_distributed(job: Job, signals: SignalWatch) -> dict[str, Any]:
    """Train in separate processes; return `run` (the id), `metrics`, and the `reason` if the trial was pruned.

    Raises:
        Interrupted: a signal came.
        InfrastructureError: training stopped for a reason that the trial may not have caused.
        UserError: training failed.

    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a file instead of arguments, which Lightning repeats for each rank and `ps` shows to all users.
        (folder / JOB).write_text(json.dumps(vars(job)))
        with (folder / STDERR).open("w+") as errors:
            command = [sys.executable, "-m", "lit_mnist.cli", "sweep", "trial", str(folder / JOB)]
            # The pipe to its standard input ends when this worker ends, see `ParentWatch`. In a new session, the
            # process leads a process group of all ranks, which can be killed together.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            with process:
                wait_or_kill(process, signals)
            errors.seek(0)
            lines = errors.read().splitlines()
        # After a signal, the output of the process is only about the interruption.
        signals.check()
        if (folder / INFRASTRUCTURE_ERROR).exists():
            raise InfrastructureError(**json.loads((folder / INFRASTRUCTURE_ERROR).read_text()))
        # The error line of this project if there is one, otherwise the last line of output.
        if process.returncode:
            lines = [line for line in lines if line.startswith(ERROR)] or lines
            raise UserError(lines[-1].removeprefix(ERROR) if lines else f"exit code {process.returncode}")
        result: dict[str, Any] = json.loads((folder / RESULT).read_text())
        return result


def wait_or_kill(process: "subprocess.Popen[bytes]", signals: SignalWatch) -> None:
    """Wait for the leader of a process group; pass on a signal, and kill the group if it does not end after that.

    A rank that waits in a collective operation for a dead rank does not handle signals (NCCL waits for 10
    minutes). Without SIGKILL it would keep its GPU after the sweep has ended.
    """
    deadline = None
    while process.poll() is None:
        # To the leader only: `RankConsensus` makes all ranks stop at the same step.
        if signals.received is not None and deadline is None:
            deadline = time.monotonic() + GROUP_SAVE_TIMEOUT
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signals.received)
        if deadline is not None and time.monotonic() > deadline:
            # The group's id cannot have been reused, since its leader has not been waited for yet.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)


def run_job(path: Path) -> None:
    """Train a job as rank 0, or as one of the other ranks, which Lightning starts with the same command line.

    Args:
        path: The file with the job. Only rank 0 reports to the study and writes a result next to this file.

    """
    # Every rank runs this; the environment variable RANK_0 is set in all ranks except rank 0.
    job = Job(**json.loads(path.read_text()))
    is_rank_0 = RANK_0 not in os.environ
    with SignalWatch() as signals:
        if is_rank_0:
            ParentWatch(signals)
        study = open_study(open_storage(None), job.study)
        spec = stored_spec(study)
        # Only the pruner is needed: the worker has already chosen the point.
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
            # In a file, since an exit code and a line of text cannot tell whether other trials are affected.
            if is_infrastructure_error(error):
                fields = {"text": describe_error(error), "affects_all_trials": affects_all_trials(error)}
                path.with_name(INFRASTRUCTURE_ERROR).write_text(json.dumps(fields))
            raise
        if result is not None:
            metrics = {**result.metrics, **reporter.measured()}
            fields = {"run": run_ids[0], "metrics": metrics, "reason": reporter.reason}
            path.with_name(RESULT).write_text(json.dumps(fields))
