"""A trial's training on several devices, in processes of its own: Lightning starts those by running one again."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
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
from lit_mnist.sweeps.workers.errors import InfrastructureError, is_infrastructure_error, is_outage, reason_of
from lit_mnist.sweeps.workers.parent_watch import ParentWatch
from lit_mnist.sweeps.workers.reporter import Reporter
from lit_mnist.training.fit import fit
from lit_mnist.training.lightning.ranks import RANK_0
from lit_mnist.training.stages import suppress_stdout


@dataclass
class Job:
    """One fit of a trial, as it is handed to its process."""

    study: str
    number: int
    seed: int
    arguments: Sequence[str]
    tags: Mapping[str, str]
    reports: bool
    """Whether the study hears of each validation."""
    validations: int


def fit_distributed(job: Job, watch: SignalWatch) -> dict[str, Any]:
    """Carry out the job; returns the run's id, its metrics, and why it was pruned, if it was.

    Raises:
        Interrupted: a signal came.
        InfrastructureError: training could not go on, by no fault of its own.
        UserError: training has failed.

    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(vars(job)))
        with (Path(folder) / "errors").open("w+") as errors:
            command = [sys.executable, "-m", "lit_mnist.cli", "sweep", "trial", str(path)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            with process:
                _attend(process, watch)
            errors.seek(0)
            said = errors.read().splitlines()
        watch.check()
        if (told := _outside(path)).exists():
            raise InfrastructureError(**json.loads(told.read_text()))
        if process.returncode:
            lines = [line for line in said if line.startswith(ERROR)] or said
            raise UserError(lines[-1].removeprefix(ERROR) if lines else f"exit code {process.returncode}")
        found: dict[str, Any] = json.loads(_result(path).read_text())
        return found


def run_job(path: Path) -> None:
    """What the process does, and each that Lightning starts beside it: only the first tells the study anything."""
    job = Job(**json.loads(path.read_text()))
    first = RANK_0 not in os.environ
    with SignalWatch() as watch:
        if first:
            ParentWatch(watch)
        study = open_study(open_storage(None), job.study)
        spec = stored_spec(study)
        study.pruner = make_pruner(spec, job.validations)
        trial = load_trial(study, job.number) if first else None
        reason = trial.user_attrs.get("pruned") if trial is not None and job.reports else None
        runs: list[str] = []
        reporter = Reporter(spec.objectives[0], trial, job.reports, job.seed, reason, runs.append)
        try:
            with suppress_stdout():
                result = fit(list(job.arguments), [reporter], watch, job.tags, leased=True)
        except Exception as error:
            if is_infrastructure_error(error):
                _outside(path).write_text(json.dumps({"text": reason_of(error), "outage": is_outage(error)}))
            raise
        if result is not None:
            metrics = {**result.metrics, **reporter.measured()}
            _result(path).write_text(json.dumps({"run": runs[0], "metrics": metrics, "reason": reporter.reason}))


def _attend(process: "subprocess.Popen[bytes]", watch: SignalWatch) -> None:
    """Wait for the process, and pass a signal on to it."""
    told = False
    while process.poll() is None:
        if watch.received is not None and not told:
            told = True
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(watch.received)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)


def _result(path: Path) -> Path:
    return path.with_name("result.json")


def _outside(path: Path) -> Path:
    return path.with_name("outside")
