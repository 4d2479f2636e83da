"""What is seen of a sweep while it works: a line a worker on a terminal, elsewhere a line a finished trial."""

import math
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_mnist.sweeps.search.spec import Spec
from lit_mnist.sweeps.study.study import COMPLETE, FAIL, PRUNED, RUNNING, get_trials
from lit_mnist.sweeps.study.summary import count_validations, read_summary, seconds_left
from lit_mnist.terminal import say, seconds
from lit_mnist.tracking.process import this_host

WORDS = {COMPLETE: "", PRUNED: "pruned ", FAIL: "failed: "}


class ProgressDisplay:
    """Shows how far a study is.

    Args:
        study: The study.
        spec: What it is about.
        workers: How many this machine has.

    """

    def __init__(self, study: optuna.Study, spec: Spec, workers: int) -> None:
        self.study, self.spec, self.workers = study, spec, workers
        self._known = {trial.number for trial in get_trials(study) if trial.state.is_finished()}
        self._live = Live(auto_refresh=False, transient=True) if sys.stdout.isatty() else None
        self._shown, self._validations = 0.0, 0

    def __enter__(self) -> "ProgressDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> bool:
        """Show what is new; whether a trial has got any further since the last time."""
        trials = get_trials(self.study)
        new = [trial for trial in trials if trial.state.is_finished() and trial.number not in self._known]
        for trial in sorted(new, key=lambda trial: trial.datetime_complete or datetime.now()):
            self._known.add(trial.number)
            say(self._line(trial, trials))
        if self._live is not None and time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            self._live.update(self._table(trials), refresh=True)
        before, self._validations = self._validations, sum(map(count_validations, trials))
        return bool(new) or self._validations != before

    def closing(self) -> str:
        """How the study stands, in one line."""
        trials = get_trials(self.study)
        done = sum(trial.state.is_finished() for trial in trials)
        counts = f" ({read_summary(self.study).counts()})" if trials else ""
        best = self._best()
        return f"study {self.study.study_name}: {done} of {self._goal()} trials{counts}" + (best and f"; {best}")

    def _line(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> str:
        done = len(self._known)
        point = describe(trial.user_attrs.get("point", {}))
        parts = [f"{done} of {self._goal()}", self._best()]
        if (left := self._seconds_left(trials)) and done < self._goal():
            parts.append(f"about {seconds(left)} left")
        result = WORDS[trial.state] + self._result(trial)
        return f"trial {trial.number}: {result} with {point}; {', '.join(part for part in parts if part)}"

    def _result(self, trial: FrozenTrial) -> str:
        if trial.state == COMPLETE:
            pairs = zip(self.spec.objectives, trial.values, strict=True)
            return ", ".join(f"{goal.metric} {value:.6g}" for goal, value in pairs)
        return str(trial.user_attrs.get("reason", ""))

    def _best(self) -> str:
        """The best by the first goal; of several objectives each has its own best."""
        so_far = read_summary(self.study)
        found = [(goal, i, so_far.best_by(i)) for i, goal in enumerate(self.spec.objectives)]
        return ", ".join(
            f"best {goal.metric} {trial.values[i]:.6g} (trial {trial.number})"
            for goal, i, trial in found
            if trial is not None
        )

    def _goal(self) -> int:
        return int(self.study.user_attrs["trials"])

    def _seconds_left(self, trials: list[FrozenTrial]) -> float:
        """An estimate; 0 while there is none."""
        working = sum(bool(t.user_attrs.get("owner")) for t in trials if t.state == RUNNING)
        until_stop = math.inf
        if self.spec.hours is not None:
            until_stop = 3600 * self.spec.hours - self.study.user_attrs.get("spent", 0.0)
        return seconds_left(trials, self._goal(), max(working, self.workers), until_stop) or 0.0

    def _table(self, trials: list[FrozenTrial]) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        for trial in trials:
            owner = trial.user_attrs.get("owner")
            if trial.state != RUNNING or not owner:
                continue
            where = f"worker {owner['worker']}" + ("" if owner["host"] == this_host() else f" on {owner['host']}")
            point = describe(trial.user_attrs.get("point", {}))
            table.add_row(where, f"trial {trial.number}", self._so_far(trial), point)
        left = self._seconds_left(trials)
        text = self.closing() + (f"; about {seconds(left)} left" if left else "")
        return Group(table, Text(text))

    def _so_far(self, trial: FrozenTrial) -> str:
        values = trial.intermediate_values
        started = trial.datetime_start or datetime.now()
        took = seconds((datetime.now() - started).total_seconds())
        metric = self.spec.objectives[0].metric
        return f"{took}, {metric} {values[max(values)]:.4g} after {len(values)}" if values else took


def describe(point: Mapping[str, Any]) -> str:
    """A point in words: numbers as short as they can be read."""
    return ", ".join(
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in point.items()
    )
