"""`lit-mnist jobs`: the submitted jobs, with their state in SLURM and MLflow."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_mnist.cluster.job import Job, QueueEntry, flag_value, jobs_folder, queue, read_job, run_slurm
from lit_mnist.errors import UsageError, nearest
from lit_mnist.slurm import ENDED
from lit_mnist.terminal import Parser, print_table, say
from lit_mnist.tracking.store import find_store


@dataclass(frozen=True)
class Row:
    """A job, or one task of its array.

    Attributes:
        name: The job's name, with the index of the array task.
        id: SLURM's id.
        state: SLURM's state; `ended` if SLURM no longer has the job.
        node: The node where it runs or last ran.
        elapsed: Time since its last start.
        restarts: How often it was requeued.
        run: The id of its run, or the name of its study; empty if there is none yet.
        status: The run's status, or the number of finished trials.
        best: The best value so far, with its metric.
        log: The file with its output.
    """

    name: str
    id: str
    state: str
    node: str
    elapsed: str
    restarts: int
    run: str
    status: str
    best: str
    log: str


def jobs(arguments: Sequence[str]) -> None:
    """Print the jobs of this project, the newest first, or cancel one.

    Args:
        arguments: The arguments of `lit-mnist jobs`.

    Raises:
        UsageError: there is no job of that name.
        UserError: SLURM is not here or does not answer.

    """
    parser = Parser("lit-mnist jobs", description="List the submitted jobs.", allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this job, with the path of its output")
    parser.add_argument("--cancel", metavar="NAME", help="cancel the job of that name, saving its run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    # Every job has a folder here, even if SLURM no longer has it.
    home = jobs_folder(find_store().home)
    found = {folder.name: job for folder in home.glob("*/") if (job := read_job(folder)) is not None}
    wanted = options.cancel or options.name
    if wanted is not None and wanted not in found:
        raise UsageError(f"there is no job {wanted!r}{nearest(wanted, found, listed=bool(found))}")
    if options.cancel:
        if all(entry.state in ENDED for entry in queue(found[wanted].ids[-1:])):
            raise UsageError(f"job {wanted} has ended already")
        # SLURM first sends SIGTERM, at which the command saves its run.
        run_slurm("scancel", *found[wanted].ids[-1:])
        say(f"job {wanted} ({found[wanted].ids[-1]}) is cancelled; submitting it again continues its run")
        return
    # Newest submission first.
    chosen = [found[wanted]] if wanted else sorted(found.values(), key=lambda job: -job.submitted)
    # One query for all jobs, to limit the load on the SLURM controller.
    entries = queue([job.ids[-1] for job in chosen if job.ids])
    rows = [row for job in chosen for row in _rows(job, home / job.name, entries)]
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
    elif not rows:
        print("no jobs; `lit-mnist submit -- fit --config zhang/cnn` submits one")
    else:
        shown = ["name", "id", "state", "node", "elapsed", "restarts", "run", "status", "best"]
        print_table(shown, [[str(getattr(row, column)) for column in shown] for row in rows])
        if wanted:
            for row in rows:
                print(row.log)


def _rows(job: Job, folder: Path, entries: list[QueueEntry]) -> Iterator[Row]:
    """A row for each task that SLURM lists; one row in state `ended` if SLURM no longer has the job."""
    # From MLflow or the study, which are available longer than SLURM's data about the job.
    run, status, best = _study_progress(job) if job.study else _run_progress(job)
    known = [entry for entry in entries if job.ids and entry.id.partition("_")[0] == job.ids[-1]]
    if not known:
        known = [QueueEntry(job.ids[-1] if job.ids else "", "ended", "", "", "", 0)]
    for entry in known:
        # The file names of `--output`: %A_%a for a task of an array, %j otherwise.
        base, _, task = entry.id.partition("_")
        pattern = f"log-{base}_{task}.txt" if task else f"log-{base}.txt"
        # The reason is meaningful only while the job is pending.
        state = f"PENDING ({entry.reason})" if entry.state == "PENDING" and entry.reason != "None" else entry.state
        yield Row(
            f"{job.name}[{task}]" if task else job.name, entry.id, state, entry.node,
            "" if entry.state in ("PENDING", *ENDED) and entry.elapsed == "0:00" else entry.elapsed,
            entry.restarts, run, status, best, str(folder / pattern),
        )  # fmt: skip


def _run_progress(job: Job) -> tuple[str, str, str]:
    """The id, status and best value of the job's run."""
    # Imported late, since jobs of sweeps do not need it.
    from lit_mnist.tracking.queries.lookup import find_key
    from lit_mnist.tracking.queries.reader import open_reader

    store = find_store()
    if (run_id := find_key(job.name)) is None or not (found := open_reader(store).runs([run_id])):
        return "", "", ""
    [run] = found
    # The value of the best checkpoint after the end of the fit, before that the last value.
    metric = run.tags.get("monitor", "")
    value = run.metrics.get(f"best/{metric}", run.metrics.get(metric))
    return run.id[:8], run.status, "" if value is None else f"{metric} {value:.4g}"


def _study_progress(job: Job) -> tuple[str, str, str]:
    """The name of the job's study, the number of finished trials, and the best value."""
    from lit_mnist.sweeps.study.storage import default_storage, open_storage, open_study, study_names
    from lit_mnist.sweeps.study.summary import read_summary

    url = flag_value(job.command, "--storage") or default_storage()
    name = job.study or ""
    # Opening a missing journal file would create it.
    if "://" not in url and not Path(url).exists():
        return name, "", ""
    storage = open_storage(url)
    if name not in study_names(storage):
        return name, "", ""
    summary = read_summary(open_study(storage, name))
    best = summary.best()
    text = f"{summary.objectives[0]} {best[0].values[0]:.4g}" if best else ""
    return name, f"{len(summary.finished)} of {summary.budget} trials", text
