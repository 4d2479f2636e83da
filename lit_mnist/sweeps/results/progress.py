"""Progress display of a running sweep: a line per finished trial, and on a terminal also a line per worker."""

import math
import sys
import time
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.study import COMPLETE, FAIL, PRUNED, RUNNING, get_trials
from lit_mnist.sweeps.study.summary import (
    count_validations,
    point,
    read_summary,
    seconds_left,
    show_short,
    show_values,
)
from lit_mnist.terminal import say, seconds
from lit_mnist.tracking.process import this_host
from lit_mnist.tracking.queries.statistics import show_mean

REFRESH_INTERVAL = 0.5
"""Seconds between two updates of the display on a terminal."""


class ProgressDisplay:
    """Context manager that shows the progress of a study.

    Args:
        study: The study.
        spec: Its specification.
        workers: Number of workers on this machine.

    """

    def __init__(self, study: optuna.Study, spec: Spec, workers: int) -> None:
        self.study, self.spec, self.workers = study, spec, workers
        # Trials of earlier sweeps are not printed again.
        self._printed = {trial.number for trial in get_trials(study) if trial.state.is_finished()}
        # Without a terminal, only lines of finished trials are printed, since redrawing would fill a log file.
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
        # In the order in which they ended, since several trials may have ended since the last update.
        for trial in sorted(new, key=lambda trial: trial.datetime_complete or datetime.now()):
            self._printed.add(trial.number)
            line = self._finished_line(trial, trials)
            if self._live is None or trial.state == FAIL:  # the reason for a failure is shown in full
                say(line)
            else:
                self._live.console.print(Text(line, no_wrap=True, overflow="ellipsis"))
        if self._live is not None and time.monotonic() - self._refreshed > REFRESH_INTERVAL:
            self._refreshed = time.monotonic()
            self._live.update(self._worker_lines(trials), refresh=True)
        # Validations count as progress, since with long trainings no trial may end for hours.
        before, self._validations = self._validations, sum(map(count_validations, trials))
        return bool(new) or self._validations != before

    def closing(self) -> str:
        """The state of the study in one line."""
        summary = read_summary(self.study)
        counts = f" ({summary.counts()})" if summary.trials else ""
        return f"study {summary.name}: {len(summary.finished)} of {summary.budget} trials{counts}"

    def _finished_line(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> str:
        """A line for a trial that has just finished: its result, its point, and the progress of the study.

        The time left and the best value are added only in a log file, since a terminal shows them on another line.
        """
        if trial.state == COMPLETE:
            result = show_values(read_summary(self.study), trial)
        else:
            result = {PRUNED: "pruned ", FAIL: "failed: "}[trial.state] + str(trial.user_attrs.get("reason", ""))
        done, budget = len(self._printed), int(self.study.user_attrs["trials"])
        line = f"trial {trial.number}: {result}; {show_short(point(trial))}; {done} of {budget}"
        if self._live is not None:
            return line
        left = self._seconds_left(trials) if done < budget else 0.0
        time_left = f"about {seconds(left)} left" if left else ""
        return ", ".join(filter(None, [line, self.best(), time_left]))

    def best(self) -> str:
        """The best value so far of each objective; empty while no trial is complete."""
        summary = read_summary(self.study)
        return ", ".join(
            f"best {metric} {show_mean(trial.values[i], summary.interval(trial, i))} (trial {trial.number})"
            for i, metric in enumerate(summary.objectives)
            if (trial := summary.best_by(i)) is not None
        )

    def _seconds_left(self, trials: list[FrozenTrial]) -> float:
        """Estimate the seconds until the study is finished; 0 before the first trial has ended."""
        # Workers on other machines are counted too, by the trials that have an owner.
        working = sum(bool(t.user_attrs.get("owner")) for t in trials if t.state == RUNNING)
        until_stop = math.inf
        if self.spec.hours is not None:
            until_stop = 3600 * self.spec.hours - self.study.user_attrs.get("spent", 0.0)
        budget = int(self.study.user_attrs["trials"])
        return seconds_left(trials, budget, max(working, self.workers), until_stop) or 0.0

    def _worker_lines(self, trials: list[FrozenTrial]) -> Group:
        """One line per worker with its trial, above the state of the study."""
        lines = []
        for trial in trials:
            owner = trial.user_attrs.get("owner")
            if trial.state != RUNNING or not owner:
                continue
            where = f"worker {owner['worker']}" + ("" if owner["host"] == this_host() else f" on {owner['host']}")
            started = trial.datetime_start or datetime.now()
            progress = seconds((datetime.now() - started).total_seconds())
            if count := count_validations(trial):
                progress += ", 1 validation" if count == 1 else f", {count} validations"
            # Values are available for the first seed only.
            if (values := trial.intermediate_values) and len(values) == count:
                progress += f", {self.spec.objectives[0].metric} {values[max(values)]:.4g}"
            lines.append(f"{where}: trial {trial.number}, {progress}; {show_short(point(trial))}")
        left = self._seconds_left(trials)
        state = self.closing() + (f", about {seconds(left)} left" if left else "")
        # Not a table, since rich (15.0) narrows all columns of a table that is too wide, including the worker's.
        lines += filter(None, [state, self.best()])
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))
