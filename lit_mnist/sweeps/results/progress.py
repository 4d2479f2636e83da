"""Live display of a running sweep: on a terminal a line per worker, and a line per finished trial everywhere."""

import math
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.study import COMPLETE, FAIL, PRUNED, RUNNING, get_trials
from lit_mnist.sweeps.study.summary import count_validations, read_summary, seconds_left
from lit_mnist.terminal import say, seconds
from lit_mnist.tracking.process import this_host

REFRESH_INTERVAL = 0.5
"""Seconds between two updates of the display on a terminal."""


class ProgressDisplay:
    """Context manager that shows how far a study is.

    Args:
        study: The study.
        spec: Its specification.
        workers: Number of workers on this machine.

    """

    def __init__(self, study: optuna.Study, spec: Spec, workers: int) -> None:
        self.study, self.spec, self.workers = study, spec, workers
        self._printed = {trial.number for trial in get_trials(study) if trial.state.is_finished()}
        # Without a terminal only the lines of finished trials are printed: redrawing would fill a log file.
        self._live = Live(console=Console(), auto_refresh=False, transient=True) if sys.stdout.isatty() else None
        self._refreshed, self._validations = 0.0, 0

    def __enter__(self) -> "ProgressDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> bool:
        """Print newly finished trials and redraw; returns True if any trial advanced since the last call."""
        trials = get_trials(self.study)
        new = [trial for trial in trials if trial.state.is_finished() and trial.number not in self._printed]
        for trial in sorted(new, key=lambda trial: trial.datetime_complete or datetime.now()):
            self._printed.add(trial.number)
            say(self._finished_line(trial, trials))
        if self._live is not None and time.monotonic() - self._refreshed > REFRESH_INTERVAL:
            self._refreshed = time.monotonic()
            self._live.update(self._workers_table(trials), refresh=True)
        before, self._validations = self._validations, sum(map(count_validations, trials))
        return bool(new) or self._validations != before

    def closing(self) -> str:
        """The state of the study in one line."""
        summary = read_summary(self.study)
        counts = f" ({summary.counts()})" if summary.trials else ""
        line = f"study {summary.name}: {len(summary.finished)} of {summary.budget} trials{counts}"
        best = self._best()
        return f"{line}; {best}" if best else line

    def _finished_line(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> str:
        """A line for a trial that has just finished: its result, its point, and how far the study is."""
        if trial.state == COMPLETE:
            pairs = zip(self.spec.objectives, trial.values, strict=True)
            result = ", ".join(f"{objective.metric} {value:.6g}" for objective, value in pairs)
        else:
            result = {PRUNED: "pruned ", FAIL: "failed: "}[trial.state] + str(trial.user_attrs.get("reason", ""))
        done, budget = len(self._printed), int(self.study.user_attrs["trials"])
        parts = [f"{done} of {budget}", self._best()]
        if done < budget and (left := self._seconds_left(trials)):
            parts.append(f"about {seconds(left)} left")
        point = _show_point(trial.user_attrs.get("point", {}))
        return f"trial {trial.number}: {result} with {point}; {', '.join(part for part in parts if part)}"

    def _best(self) -> str:
        """The best value so far of each objective; empty while no trial is complete."""
        summary = read_summary(self.study)
        return ", ".join(
            f"best {objective.metric} {trial.values[i]:.6g} (trial {trial.number})"
            for i, objective in enumerate(self.spec.objectives)
            if (trial := summary.best_by(i)) is not None
        )

    def _seconds_left(self, trials: list[FrozenTrial]) -> float:
        """Estimate the seconds until the study is finished; 0 while no trial has shown how long one takes."""
        # The workers of other machines count too: each trial that has an owner is being worked on.
        working = sum(bool(t.user_attrs.get("owner")) for t in trials if t.state == RUNNING)
        until_stop = math.inf
        if self.spec.hours is not None:
            until_stop = 3600 * self.spec.hours - self.study.user_attrs.get("spent", 0.0)
        budget = int(self.study.user_attrs["trials"])
        return seconds_left(trials, budget, max(working, self.workers), until_stop) or 0.0

    def _workers_table(self, trials: list[FrozenTrial]) -> Group:
        """One line per worker with its trial, above the state of the study."""
        table = Table(box=None, pad_edge=False, show_header=False)
        for trial in trials:
            owner = trial.user_attrs.get("owner")
            if trial.state != RUNNING or not owner:
                continue
            where = f"worker {owner['worker']}" + ("" if owner["host"] == this_host() else f" on {owner['host']}")
            started = trial.datetime_start or datetime.now()
            progress = seconds((datetime.now() - started).total_seconds())
            if values := trial.intermediate_values:
                metric = self.spec.objectives[0].metric
                progress += f", {metric} {values[max(values)]:.4g} after {len(values)}"
            point = _show_point(trial.user_attrs.get("point", {}))
            table.add_row(where, f"trial {trial.number}", progress, point)
        left = self._seconds_left(trials)
        return Group(table, Text(self.closing() + (f"; about {seconds(left)} left" if left else "")))


def _show_point(point: Mapping[str, Any]) -> str:
    """The point as text, floats to four significant digits."""
    return ", ".join(
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in point.items()
    )
