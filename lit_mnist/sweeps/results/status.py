"""`lit-mnist sweep status`, `best`, `export` and `list`: what studies have come to."""

from collections.abc import Sequence
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape

from lit_mnist.errors import UsageError, UserError
from lit_mnist.sweeps.results.best_config import write_configs
from lit_mnist.sweeps.study.storage import open_storage, open_study, study_names
from lit_mnist.sweeps.study.summary import StudySummary, point, read_summary, runs, seconds_left, show, show_point
from lit_mnist.terminal import print_table, seconds
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.process import is_alive, this_host
from lit_mnist.tracking.queries.statistics import summarise

TABLES = (".csv", ".parquet")
AT_WORK = ("trial", "host", "worker", "validation", "last value", "point")


def status(name: str, storage: str | None) -> None:
    """Print how far the study is: trials by state, the best so far, who works on what, the time left.

    Raises:
        UserError: there is no such study, or its storage cannot be opened.

    """
    found = _outcome(name, storage)
    done, left = len(found.finished), found.budget - len(found.finished)
    print(f"study {name}: {done} of {found.budget} trials finished ({found.counts()})")
    for trial in found.best():
        print(f"best: trial {trial.number}, {_values(found, trial)}  {show_point(point(trial))}")
    running = [trial for trial in found.trials if trial.state == TrialState.RUNNING]
    if running:
        print_table(AT_WORK, [_at_work(trial) for trial in running])
    workers = {_worker(trial) for trial in running if _owner_state(trial) == ""}
    if left <= 0:
        print("finished; --trials N makes it go on")
    elif not workers:
        print(f"no worker is at it: `lit-mnist sweep` with its spec does the {left} that are left")
    elif (estimate := seconds_left(found.trials, found.budget, len(workers))) is not None:
        print(f"about {seconds(estimate)} left with {_count(workers)}")


def best(name: str, storage: str | None, out: Path | None) -> None:
    """Print the best trial, or the Pareto set of two objectives, and write the configuration that repeats it.

    Args:
        name: The study.
        storage: Where it is kept; None for the default.
        out: The file for the configuration; None for NAME_best.yaml here. The further seeds of a trial get
            files beside it.

    Raises:
        UserError: there is no such study, none of its trials is complete, or a file is in the way.

    """
    found = _outcome(name, storage)
    if not (front := found.best()):
        raise UserError(f"study {name} has no complete trial that keeps to its constraints ({found.counts()})")
    for trial in front:
        print(f"trial {trial.number}: {_values(found, trial)}")
        for seed, run_id in zip(found.seeds, runs(trial), strict=False):
            print(f"  seed {seed}: run {run_id}")
        for field, value in point(trial).items():
            print(f"  {field}: {show(value)}")
    for path in write_configs(found, front[0], out or Path(f"{name}_best.yaml")):
        print(f"lit-mnist fit --config {path}")


def export(name: str, storage: str | None, out: Path | None) -> None:
    """Write a row for each trial, as CSV or parquet by the suffix of `out`, which is NAME.csv if not given.

    Raises:
        UserError: there is no such study, or the suffix is another.

    """
    out = out or Path(f"{name}.csv")
    if out.suffix not in TABLES:
        raise UsageError(f"--out {out}: its suffix says the format, {' or '.join(TABLES)}")
    found = _outcome(name, storage)
    import pandas

    from lit_mnist.sweeps.results.table import rows

    frame = pandas.DataFrame(rows(found))
    if out.suffix == ".csv":
        replace_text(out, frame.to_csv(index=False))
    else:
        frame.to_parquet(out, index=False)
    print(f"{out}: {len(frame)} trials")


def list_studies(storage: str | None) -> None:
    """Print a line for each study."""
    opened = open_storage(storage)
    found = [_read(opened, name) for name in study_names(opened)]
    if not found:
        print("no studies yet: `lit-mnist sweep SPEC.yaml` makes one")
        return
    lines = [(o.name, f"{len(o.finished)} of {o.budget}", o.counts(), _best_cell(o)) for o in found]
    print_table(("study", "finished", "trials", "best"), [[escape(cell) for cell in line] for line in lines])


def _outcome(name: str, storage: str | None) -> StudySummary:
    return _read(open_storage(storage), name)


def _read(storage: BaseStorage, name: str) -> StudySummary:
    study = open_study(storage, name)
    if "stored" not in study.user_attrs:
        raise UserError(f"study {name!r} was not made by `lit-mnist sweep`, or is just being made")
    return read_summary(study)


def _values(found: StudySummary, trial: FrozenTrial) -> str:
    """The trial's values by name, over several seeds with their intervals."""
    texts = []
    for i, (goal, value) in enumerate(zip(found.objectives, trial.values, strict=True)):
        summary = summarise([seed[i] for seed in trial.user_attrs.get("values", [])] or [value])
        spread = "" if summary.interval is None else f" ± {summary.interval:.2g} ({len(summary.values)} seeds)"
        texts.append(f"{goal} {value:.4g}{spread}")
    return ", ".join(texts)


def _best_cell(found: StudySummary) -> str:
    front = found.best()
    if len(front) > 1:
        return f"{len(front)} of the Pareto front"
    return f"{_values(found, front[0])}, trial {front[0].number}" if front else ""


def _at_work(trial: FrozenTrial) -> Sequence[str]:
    """A row on a trial that is not finished."""
    owner, last = trial.user_attrs.get("owner") or {}, trial.last_step
    value = "" if last is None else f"{trial.intermediate_values[last]:.4g}"
    state = _owner_state(trial)
    return [
        str(trial.number),
        escape(str(owner.get("host", "–"))),
        f"[yellow]{state}[/]" if state else str(owner["worker"]),
        "" if last is None else str(last + 1),
        value,
        escape(show_point(point(trial))),
    ]


def _owner_state(trial: FrozenTrial) -> str:
    """What is wrong with whoever works on the trial; empty for one that lives, as far as can be seen here."""
    owner = trial.user_attrs.get("owner")
    if not owner:
        return "interrupted"
    if owner["host"] == this_host() and not is_alive(owner["process"]):
        return "stale: its worker is dead"
    return ""


def _worker(trial: FrozenTrial) -> tuple[str, str]:
    owner = trial.user_attrs["owner"]
    return owner["host"], owner["process"]


def _count(workers: set[tuple[str, str]]) -> str:
    return "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
