"""`lit-mnist sweep best` and `sweep export`: a trial's configuration, and all trials as a table."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial

from lit_mnist.errors import UsageError, UserError, one_line
from lit_mnist.sweeps.results.confirmation import read_confirmation, verdict
from lit_mnist.sweeps.results.status import load_summary
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.sweeps.study.summary import STATES, StudySummary, is_allowed, point, runs, show, show_values
from lit_mnist.tracking.folder import CONFIG
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.queries.lookup import fetched
from lit_mnist.tracking.queries.statistics import summarise
from lit_mnist.tracking.store import connect, find_store

FORMATS = (".csv", ".parquet")


def best(name: str, storage: str | None, out: Path | None) -> None:
    """Print the best trial, or the Pareto front, and write the configuration that repeats the first of them.

    If the study was confirmed with further seeds, their results determine the best trial.

    Args:
        name: The study.
        storage: URL or path of its storage; None for the default.
        out: File for the configuration of the first seed; None for NAME_best.yaml in the working directory. The
            other seeds' files have the seed in their names.

    Raises:
        UserError: there is no such study, none of its trials is complete, or an unrelated file would be
            overwritten.

    """
    opened = open_storage(storage)
    summary = load_summary(opened, name)
    # First the best trial of the search, then the confirmation, which takes precedence.
    if not (front := summary.best()):
        raise UserError(f"study {name} has no complete trial that keeps to its constraints ({summary.counts()})")
    if len(summary.objectives) > 1:
        count = "1 trial" if len(front) == 1 else f"{len(front)} trials"
        print(f"{count} on the Pareto front, the best {summary.objectives[0]} first:")
    for trial in front:
        seeds = f" ({len(summary.seeds)} seeds)" if len(summary.seeds) > 1 else ""
        print(f"trial {trial.number}: {show_values(summary, trial)}{seeds}")
        for seed, run_id in zip(summary.seeds, runs(trial), strict=False):
            print(f"  seed {seed}: run {run_id}")
        for field, value in point(trial).items():
            print(f"  {field}: {show(value)}")
    for line in verdict(summary, confirmed := read_confirmation(opened, name)):
        print(line)
    if confirmed and confirmed[0].number != front[0].number:
        # The new seeds are more reliable than those by which the search chose its best trial.
        front = [summary.trials[confirmed[0].number]]
        print(f"the configuration is that of trial {front[0].number}, the best with the further seeds")
    paths = _write_configs(summary, front[0], out or Path(f"{name}_best.yaml"))
    print(f"to train trial {front[0].number} again, with the configuration that is now in the file:")
    for path in paths:
        print(f"  lit-mnist fit --config {shlex.quote(str(path))}")


def export(name: str, storage: str | None, out: Path | None) -> None:
    """Write one row per trial, as CSV or parquet by the suffix of `out`; None for NAME.csv.

    Raises:
        UserError: there is no such study, or the suffix is not one of the two.

    """
    out = out or Path(f"{name}.csv")
    if out.suffix not in FORMATS:
        raise UsageError(f"--out {out}: its suffix says the format, {' or '.join(FORMATS)}")
    summary = load_summary(open_storage(storage), name)
    import pandas  # not at the top: 0.3 s that `best` does not need

    # CSV is written atomically, so that a program that watches the file never reads an incomplete one.
    frame = pandas.DataFrame(trial_rows(summary))
    if out.suffix == ".csv":
        replace_text(out, frame.to_csv(index=False))
    else:
        frame.to_parquet(out, index=False)
    print(f"{out}: {len(frame)} trials")


def trial_rows(summary: StudySummary) -> list[dict[str, Any]]:
    """One row per trial, all with the same columns; unknown cells are None.

    Columns: number, state, each objective (with several seeds also its interval and each seed's value), each
    parameter, and data about the trial's runs.
    """
    # All trials together determine the columns, since conditional parameters are missing in some trials.
    points = [point(trial) for trial in summary.trials]
    names = list(dict.fromkeys(name for tried in points for name in tried))
    as_json = set()
    for name in names:
        types = {type(tried[name]) for tried in points if tried.get(name) is not None}
        # Integers and floats may be mixed in a column.
        types = {float if kind is int else kind for kind in types}
        if len(types) > 1 or list in types:  # parquet does not support columns of mixed types
            as_json.add(name)
    rows = []
    for trial, tried in zip(summary.trials, points, strict=True):
        row: dict[str, Any] = {"number": trial.number, "state": STATES[trial.state]}
        for i, metric in enumerate(summary.objectives):
            row[metric] = trial.values[i] if trial.values else None
            if len(summary.seeds) > 1:
                by_seed = [values[i] for values in trial.user_attrs.get("values", [])]
                row[f"{metric}/interval"] = summarise(by_seed).interval if by_seed else None
                for n, seed in enumerate(summary.seeds):
                    row[f"{metric}/seed_{seed}"] = by_seed[n] if n < len(by_seed) else None
        for name in names:
            value = tried.get(name)
            row[name] = json.dumps(value) if name in as_json and value is not None else value
        row |= {
            "allowed": is_allowed(trial),
            "seeds": " ".join(map(str, summary.seeds)),
            "runs": " ".join(runs(trial)),
            "seconds": trial.user_attrs.get("seconds"),
            "reason": trial.user_attrs.get("reason"),
            "start": trial.datetime_start,
            "end": trial.datetime_complete,
        }
        rows.append(row)
    return rows


def _write_configs(summary: StudySummary, trial: FrozenTrial, out: Path) -> list[Path]:
    """Write the whole configuration of each run of the complete `trial`, one run per seed; returns the paths.

    Raises:
        UserError: a run was deleted, or an unrelated file would be overwritten.

    """
    # Nothing is written before all files are checked and all runs are read: all of the files, or none.
    paths = [out if n == 0 else out.with_stem(f"{out.stem}_seed_{seed}") for n, seed in enumerate(summary.seeds)]
    mark = f"# Study {summary.name}, "
    for path in paths:
        if path.exists() and not path.read_text().startswith(mark):
            raise UserError(f"{path} is not a configuration of this study's: move it, or take another --out")
    client = connect(find_store())
    by_seed = trial.user_attrs.get("values") or [trial.values]
    texts: list[str] = []
    for seed, run_id, values in zip(summary.seeds, runs(trial), by_seed, strict=True):
        try:
            with fetched(client, run_id, CONFIG) as file:
                config: dict[str, Any] = yaml.safe_load(file.read_text())
        except Exception as error:  # each kind of artifact store has its own exceptions
            raise UserError(f"cannot read the configuration of run {run_id}: {one_line(error)}") from None
        # Remove the settings of the sweep: tracking and progress bar.
        config.pop("tracking", None)
        config["trainer"].pop("enable_progress_bar", None)
        reached = ", ".join(f"{metric} {v!r}" for metric, v in zip(summary.objectives, values, strict=True))
        head = f"{mark}trial {trial.number}, seed {seed}, run {run_id}: {reached}\n"
        texts.append(head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    for path, text in zip(paths, texts, strict=True):
        replace_text(path, text)
    return paths
