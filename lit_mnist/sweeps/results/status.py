"""`lit-mnist sweep status` and `sweep list`: the progress of studies.

This module imports neither torch nor MLflow, so that the commands are fast.
"""

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape

from lit_mnist.errors import UserError
from lit_mnist.sweeps.study.storage import STORED, is_confirmation, open_storage, open_study, study_names
from lit_mnist.sweeps.study.summary import StudySummary, point, read_summary, seconds_left, show_short, show_values
from lit_mnist.terminal import print_table, seconds
from lit_mnist.tracking.pages import show_page
from lit_mnist.tracking.process import is_alive, this_host
from lit_mnist.tracking.store import find_store


def status(name: str, storage: str | None) -> None:
    """Print trials by state, the best so far, the running trials with their workers, and the time left.

    Raises:
        UserError: there is no such study, or its storage cannot be opened.

    """
    opened = open_storage(storage)
    summary = load_summary(opened, name)
    done, left = len(summary.finished), summary.budget - len(summary.finished)
    print(f"study {name}: {done} of {summary.budget} trials finished ({summary.counts()})")
    for trial in summary.best():
        which = "best" if len(summary.objectives) == 1 else "on the Pareto front"
        print(f"{which}: trial {trial.number}, {show_values(summary, trial)}; {show_short(point(trial))}")
    # Each running trial with its worker, or the problem with that worker.
    running = [trial for trial in summary.trials if trial.state == TrialState.RUNNING]
    # The processes that seem to be alive, whose number is used for the estimate below.
    rows: list[list[str]] = []
    workers = set()
    for trial in running:
        owner, problem = trial.user_attrs.get("owner") or {}, _owner_problem(trial)
        if not problem:
            workers.add((owner["host"], owner["process"]))
        last = trial.last_step
        rows.append([
            str(trial.number),
            escape(str(owner.get("host", "–"))),
            str(owner.get("task", "")),
            f"[yellow]{problem}[/]" if problem else str(owner["worker"]),
            "" if last is None else str(last + 1),
            "" if last is None else f"{trial.intermediate_values[last]:.4g}",
            escape(show_short(point(trial))),
        ])  # fmt: skip
    if rows:
        header = ["trial", "host", "job", "worker", "validation", "last value", "point"]
        if not any(row[2] for row in rows):  # outside SLURM
            header, *rows = [[*row[:2], *row[3:]] for row in (header, *rows)]
        print_table(header, rows)
    attributes, command = open_study(opened, name).user_attrs, f"lit-mnist sweep {summary.arguments}"
    if left <= 0:
        # A confirmation has all of its points. A grid may have, which is not known without reading its space.
        is_complete, more = is_confirmation(name) or attributes[STORED]["sampler"] == "grid", 2 * summary.budget
        print("finished" if is_complete else f"finished; `{command} --trials {more}` adds more")
    elif not workers:
        print(f"no worker is running; `{command}` runs what is left, {left} trial{'s' * (left > 1)}")
    elif (estimate := seconds_left(summary.trials, summary.budget, len(workers))) is not None:
        count = "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
        print(f"about {seconds(estimate)} left with {count}")
    if "experiment_id" in attributes:  # a study of version 0.1 has none until it is continued
        print(show_page(find_store(), attributes["experiment_id"], attributes["run_id"]))


def list_studies(storage: str | None) -> None:
    """Print a line for each study."""
    opened = open_storage(storage)
    rows = []
    for name in filter(lambda name: not is_confirmation(name), study_names(opened)):
        summary = load_summary(opened, name)
        front = summary.best()
        if len(front) > 1:
            best = f"{len(front)} trials on the Pareto front"
        else:
            best = f"{show_values(summary, front[0])}, trial {front[0].number}" if front else ""
        rows.append([name, f"{len(summary.finished)} of {summary.budget}", summary.counts(), best])
    if not rows:
        print("no studies yet: `lit-mnist sweep SPEC.yaml` makes one")
        return
    print_table(("study", "finished", "trials", "best"), [[escape(cell) for cell in row] for row in rows])


def load_summary(storage: BaseStorage, name: str) -> StudySummary:
    """Read the study `name`.

    Raises:
        UserError: there is no such study, or it was not created by `lit-mnist sweep`.

    """
    study = open_study(storage, name)
    if STORED not in study.user_attrs:
        raise UserError(f"study {name!r} was not made by `lit-mnist sweep`, or is just being made")
    return read_summary(study)


def _owner_problem(trial: FrozenTrial) -> str:
    """Why no worker works on a running trial; empty if its worker is alive, as far as this host can tell."""
    owner = trial.user_attrs.get("owner")
    if not owner:
        return "interrupted"
    if owner["host"] == this_host() and not is_alive(owner["process"]):
        return "stale: its worker is dead"
    return ""
