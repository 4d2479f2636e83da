"""`lit-mnist submit`: run a command as a SLURM job that is requeued until its work is done."""

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_mnist.cluster.job import (
    ATTEMPTS,
    CODE,
    PAUSE,
    SCRIPT,
    BusyControllerError,
    Job,
    flag_value,
    jobs_folder,
    queue,
    read_job,
    run_slurm,
)
from lit_mnist.cluster.script import batch_script, parse_time
from lit_mnist.cluster.snapshot import Snapshot, code_files, plan_snapshot, take_snapshot
from lit_mnist.errors import UsageError, UserError
from lit_mnist.redaction import redact_urls
from lit_mnist.slurm import ENDED, warning_time
from lit_mnist.sweeps.resources import count_devices
from lit_mnist.terminal import Parser, note, say
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.provenance import SNAPSHOT
from lit_mnist.tracking.store import URI, find_store

NAME = r"\w[\w.-]*"
VERBS = ("fit", "sweep", "reproduce")
SETTINGS = ("LIT_MNIST_DATA", "LIT_MNIST_STORAGE", URI)
"""Variables that the script sets to their values at submission. Values with a password are left out; `sbatch`
passes on the environment anyway, unless the site disables this (SBATCH_EXPORT)."""
EPILOG = """\
examples:
  lit-mnist submit --time 4:00:00 --gpus 1 -- fit --config zhang/cnn
  lit-mnist submit --nodes 2 --gpus 4 -- fit --config zhang/cnn --trainer.strategy ddp
  lit-mnist submit --array 8 --gpus 1 -- sweep sweeps/zhang_feature_classifier.yaml

The command after `--` is any `lit-mnist fit`, `sweep` or `reproduce`. Submitting the same command again
continues the same run or study.
"""


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "lit-mnist submit",
        usage="lit-mnist submit [OPTIONS] -- fit|sweep|reproduce ...",
        description="Run a command as a SLURM job that is put back into the queue until its work is done.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--name", help="of the job and key of its run (default: made from the command)")
    parser.add_argument("--time", help="time limit of each start of the job, such as 4:00:00")
    parser.add_argument("--gpus", type=_count, default=0, help="GPUs on each node (default: 0)")
    parser.add_argument(
        "--cpus", type=_positive, help="CPU cores for each process of a fit, or for all workers of a sweep"
    )
    parser.add_argument("--nodes", type=_positive, default=1, help="nodes that train one network (default: 1)")
    parser.add_argument("--mem", help="memory on each node, such as 16G")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--array", type=_positive, metavar="N", help="N tasks that share one sweep")
    parser.add_argument(
        "--restarts", type=_count, default=20, help="how often the job may be requeued (default: 20)"
    )
    parser.add_argument("--after", metavar="JOB", help="start when this job has succeeded: its name or SLURM's id")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="FLAG", help="any option of sbatch; repeatable"
    )
    parser.add_argument(
        "--no-snapshot",
        action="store_true",
        help="run the checkout as it is when the job starts, instead of a copy",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script; submit and write nothing")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="fit, sweep or reproduce ..."
    )
    return parser.parse_args(arguments)


def submit(arguments: Sequence[str]) -> None:
    """Write the job's folder and submit its script.

    Args:
        arguments: The arguments of `lit-mnist submit`.

    Raises:
        UsageError: the options and the command are inconsistent.
        UserError: SLURM is not available or refuses the job, or a job of that name is queued or running.

    """
    # The command after `--` is not parsed here.
    options = _parse(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    _check(options, command)
    # The name is also the run's key, so that submitting the same command again finds the folder and the run.
    name = options.name or _default_name(command)
    home = find_store().home
    folder = jobs_folder(home) / name
    # None means that the job runs the current state of the checkout when it starts.
    code = None if options.no_snapshot else folder / CODE
    if options.dry_run:
        print(_script(options, command, name, folder, plan_snapshot(code)), end="")
        return
    if shutil.which("sbatch") is None:
        raise UsageError("there is no `sbatch` here: submit on a login node of a SLURM cluster, or take --dry-run")
    earlier = read_job(folder)
    if earlier and (active := [entry for entry in queue(earlier.ids[-1:]) if entry.state not in ENDED]):
        raise UsageError(
            f"job {name} is {active[0].state} already ({active[0].id}); `lit-mnist jobs {name}` shows it"
        )
    # A job that the controller has accepted without answering has no job.json, but its copy of the code must not
    # change.
    if unknown := _queued(folder / SCRIPT):
        raise UsageError(f"job {name} is in SLURM's queue already: `scancel {' '.join(sorted(unknown))}` ends it")
    # From here on files are written: code and script, and job.json only after sbatch has answered.
    folder.mkdir(parents=True, exist_ok=True)
    snapshot = plan_snapshot(None) if code is None else take_snapshot(code)
    replace_text(folder / SCRIPT, _script(options, command, name, folder, snapshot))
    job_id = _sbatch(folder / SCRIPT, name)
    job = Job(name, command, _study(command), snapshot.commit, snapshot.digest, time.time(), options.restarts)
    # Older ids are kept for their logs.
    job.ids = [*(earlier.ids if earlier else []), job_id]
    job.write(folder)
    say(f"job {name} is submitted as {job_id}; `lit-mnist jobs {name}` shows it, its output is in {folder}")


def _sbatch(script: Path, name: str) -> str:
    """Submit the script exactly once, even if the controller is too busy to answer; returns SLURM's job id."""
    # A busy controller may have accepted the job without answering: submitting again at once would train twice.
    for _ in range(ATTEMPTS):
        with suppress(BusyControllerError):
            return run_slurm("sbatch", "--parsable", str(script), attempts=1).strip().partition(";")[0]
        note("the SLURM controller does not answer `sbatch`: looking whether it has taken the job")
        time.sleep(PAUSE)
        if found := _queued(script):
            return found.pop()
    raise UserError(
        f"the SLURM controller does not answer `sbatch`: `lit-mnist submit --name {name} ...` again later"
    )


def _queued(script: Path) -> set[str]:
    """SLURM's ids of this user's queued or running jobs with that batch script."""
    states = "pending,configuring,running,suspended"  # without completing: a cancelled job may take a while to end
    # %o is the path of the batch script, which identifies the job.
    lines = run_slurm("squeue", "--me", "--noheader", "--states", states, "--format", "%F %o").splitlines()
    return {line.split()[0] for line in lines if line.partition(" ")[2].strip() == str(script)}


def _check(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Check the options and the command before anything is written."""
    if not command:
        raise UsageError("what is to be submitted? `lit-mnist submit [OPTIONS] -- fit --config zhang/cnn`")
    if command[0] not in VERBS:
        raise UsageError(f"submit takes {', '.join(VERBS)}, and not {command[0]!r}")
    if options.time is not None:
        parse_time(options.time)
    if options.name is not None and not re.fullmatch(NAME, options.name):
        raise UsageError(f"--name {options.name}: letters, digits, dots, dashes and underscores only")
    # Flags of the command, as `--flag value` and `--flag=value`.
    flags = {word.partition("=")[0] for word in command}
    if command[0] == "fit" and (given := [name for name in ("--resume", "--key", "--offline") if name in flags]):
        raise UsageError(f"{given[0]}: a job finds its run by its name; give --name to continue an earlier job")
    devices = flag_value(command, "--trainer.devices")
    if command[0] == "fit" and devices is not None and not re.fullmatch("[1-9][0-9]*", devices):
        raise UsageError(f"--trainer.devices {devices}: a job needs a number; or leave it out and give --gpus")
    if options.array and command[0] != "sweep":
        raise UsageError("--array: several tasks can share a sweep only; submit each fit as a job of its own")
    if command[0] == "sweep" and options.nodes > 1:
        raise UsageError("--nodes: a trial runs on one node; take --array, whose tasks share the study")
    # The tasks can share the study only through a database.
    given_storage = flag_value(command, "--storage") or ""
    if redact_urls(given_storage) != given_storage:
        raise UsageError(
            f"--storage {redact_urls(given_storage)}: the job's script would show the password; set it in"
            " LIT_MNIST_STORAGE, which SLURM hands on to the job"
        )
    storage = given_storage or os.environ.get("LIT_MNIST_STORAGE", "")
    if options.array and ("://" not in storage or storage.startswith("sqlite")):
        raise UsageError(
            "--array: tasks on several nodes need a study in a database: set LIT_MNIST_STORAGE to"
            " postgresql+psycopg://HOST/NAME; a file is not safe on a network file system"
        )


def _script(
    options: argparse.Namespace, command: Sequence[str], name: str, folder: Path, snapshot: Snapshot
) -> str:
    limit = parse_time(options.time) if options.time else None
    # srun starts one process per device for a fit; a sweep starts its own processes.
    tasks = 1 if command[0] != "fit" else int(flag_value(command, "--trainer.devices") or max(options.gpus, 1))
    # %A_%a: array and task; %j: job. SLURM fills them in.
    log = folder / ("log-%A_%a.txt" if options.array else "log-%j.txt")
    directives = {
        "job-name": name,
        "output": str(log),
        "open-mode": "append",  # a restart continues the same file
        "requeue": None,
        "signal": f"B:USR1@{warning_time(limit)}",
        "time": options.time,
        "nodes": str(options.nodes),
        "ntasks-per-node": str(tasks),
        "cpus-per-task": options.cpus and str(options.cpus),
        "gpus-per-node": str(options.gpus or ""),
        "mem": options.mem,
        "partition": options.partition,
        "account": options.account,
        "array": f"0-{options.array - 1}" if options.array else None,
        "dependency": options.after and f"afterok:{_job_id(options.after, folder.parent)}",
    }
    # `requeue` is a flag without a value; other options without a value were not given and are left out.
    given = {name: value for name, value in directives.items() if name == "requeue" or value}
    environment = {
        SNAPSHOT: f"{snapshot.commit}:{snapshot.digest}",
        "PYTHONPATH": str(snapshot.folder),
        "PYTHONSAFEPATH": "1",
        **{key: value for key in SETTINGS if (value := os.environ.get(key)) and redact_urls(value) == value},
    }
    full = _full_command(options, command, name, snapshot, tasks)
    return batch_script(given, options.sbatch, environment, str(Path.cwd()), full, options.restarts)


def _full_command(
    options: argparse.Namespace, command: Sequence[str], name: str, snapshot: Snapshot, tasks: int
) -> list[str]:
    """The command of the job: with paths in the snapshot, with the key, and with srun for several processes."""
    # A configuration inside the checkout is replaced by its copy; others are not changed.
    words = [_in_snapshot(word, snapshot) for word in command]
    if command[0] == "fit":
        words += ["--key", name]
        # Lightning needs the number of devices and nodes; `check_tasks` checks numbers that the user gives.
        for flag, count in (("--trainer.devices", tasks), ("--trainer.num_nodes", options.nodes)):
            if count > 1 and flag_value(command, flag) is None:
                words += [flag, str(count)]
    if command[0] == "sweep" and options.gpus > 1 and flag_value(command, "--workers") is None:
        words += ["--workers", str(_workers(options.gpus, _spec(command)))]
    # A single process is started without srun, as a child of the batch script, which passes on signals.
    start = []
    if command[0] == "fit" and tasks * options.nodes > 1:
        # Since SLURM 22.05, srun does not inherit --cpus-per-task from sbatch.
        start = ["srun", "--kill-on-bad-exit", *([f"--cpus-per-task={options.cpus}"] if options.cpus else [])]
    # With this interpreter, whose environment has the dependencies.
    return [*start, sys.executable, "-m", "lit_mnist.cli", *words]


def _in_snapshot(word: str, snapshot: Snapshot) -> str:
    """Replace an argument that names a file by its copy, so that later edits of the file do not affect the job."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = Path(value).absolute()
    # Only for files that are part of the copy, which data and checkpoints are not.
    if value and path.is_file() and path.is_relative_to(snapshot.source):
        inside = path.relative_to(snapshot.source)
        if inside in code_files(snapshot.source):
            return f"{flag}{equals}{snapshot.folder / inside}"
    return word


def _job_id(name: str, folder: Path) -> str:
    """SLURM's id of the job `name`, which may be such an id itself."""
    if (job := read_job(folder / name)) is not None and job.ids:
        return job.ids[-1]
    if name.isdecimal():
        return name
    raise UsageError(f"--after {name}: there is no such job; `lit-mnist jobs` lists them")


def _default_name(command: Sequence[str]) -> str:
    """A name that depends only on the command: its configuration or specification, and a hash of its arguments."""
    subject = flag_value(command, "--config") or next((w for w in command[1:] if not w.startswith("-")), "")
    words = [command[0], *Path(subject).with_suffix("").parts[-2:]] if subject else [command[0]]
    # Six hex digits distinguish the commands of a project, and are short in squeue's list.
    digest = hashlib.sha256("\0".join(command).encode()).hexdigest()[:6]
    return re.sub(r"[^\w.-]+", "-", "-".join([*words, digest]))


def _spec(command: Sequence[str]) -> Mapping[str, Any]:
    """The specification of a sweep, without checks; empty if it cannot be read, which the sweep itself reports."""
    import yaml

    path = next((word for word in command[1:] if word.endswith((".yaml", ".yml"))), None)
    try:
        content = yaml.safe_load(Path(path).read_text()) if path and command[0] == "sweep" else {}
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _study(command: Sequence[str]) -> str | None:
    """The name of a sweep's study, from its specification or from the command."""
    if command[0] != "sweep":
        return None
    # `sweep SPEC`, `sweep NAME` or `sweep confirm NAME`.
    given = next((word for word in command[1:3] if not word.startswith("-") and word != "confirm"), None)
    if given is None or not given.endswith((".yaml", ".yml")):
        return given
    # By default, the study has the name of the specification's file.
    return str(_spec(command).get("study") or Path(given).stem)


def _workers(gpus: int, spec: Mapping[str, Any]) -> int:
    """The number of workers for a node's GPUs, such that each worker has enough GPUs for the largest trial."""
    try:
        devices = [(spec.get("flags") or {}).get("trainer.devices", 1)]
        devices += (spec.get("space") or {}).get("trainer.devices", {}).get("choices", [])
        return max(1, gpus // max(count_devices(value) or gpus for value in devices))
    except (AttributeError, TypeError, ValueError):
        return 1  # the specification is wrong, which the sweep reports


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of {least} or more")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, least=1)
