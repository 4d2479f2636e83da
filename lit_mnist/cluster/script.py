"""The batch script of a job, which is passed to `sbatch` and printed by `lit-mnist submit --dry-run`."""

import re
import shlex
from collections.abc import Mapping, Sequence

from lit_mnist.errors import UsageError
from lit_mnist.slurm import REQUEUE_CODE

# Plain bash, so that signals are passed on and the job is requeued even if Python fails.
SCRIPT = """\
#!/bin/bash
{directives}

# The code is that of the submission. PYTHONSAFEPATH keeps the current folder, which may be a checkout with other
# code, off Python's path.
{environment}
cd {folder} || exit 1

# SLURM sends signals to this script (--signal=B:...), which passes them on. The command saves and exits with
# {requeue}; then the job is put back into the queue, at most {restarts} times.
forward() {{ signalled=1; kill -s "$1" "$child" 2>/dev/null; }}
trap 'forward USR1' USR1 USR2
trap 'forward TERM' TERM
trap 'forward INT' INT

{command} &
child=$!
while :; do
  signalled=0
  wait "$child"
  code=$?
  [ "$signalled" = 1 ] || break  # `wait` returned because the command ended, not because of a signal
done

if [ "$code" = {requeue} ]; then
  # One task of an array has the id of the whole array as its SLURM_JOB_ID.
  job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
  job=${{job:-$SLURM_JOB_ID}}
  # A job that is not RUNNING is ended by SLURM: one that is preempted or requeued starts again by itself, and one
  # that the user has cancelled (COMPLETING in SLURM 22.05) must not start again.
  state=$(scontrol show job "$job" 2>/dev/null | sed -n 's/.*JobState=\\([A-Z_]*\\).*/\\1/p')
  restart=$((${{SLURM_RESTART_COUNT:-0}} + 1))
  if [ -n "$state" ] && [ "$state" != RUNNING ]; then
    echo "SLURM ends job $job itself ($state): this script does not requeue it"
  elif [ "$restart" -le {restarts} ]; then
    echo "job $job is requeued (restart $restart of {restarts})"
    for attempt in 1 2 3 4 5; do  # the controller may be busy
      scontrol requeue "$job" && break
      sleep 5
    done
    sleep 60  # SLURM ends this script as part of the requeue; exiting first would count as the job's end
  else
    echo "job $job was restarted {restarts} times (--restarts): it is not requeued"
  fi
fi
exit "$code"
"""


def batch_script(
    options: Mapping[str, str | None],
    extra: Sequence[str],
    environment: Mapping[str, str],
    folder: str,
    command: Sequence[str],
    restarts: int,
) -> str:
    """The script as text.

    Args:
        options: Long options of `sbatch` by name; an option without a value is a flag.
        extra: Further options in the user's form.
        environment: Variables that are set for the command.
        folder: The working directory of the command.
        command: The command and its arguments.
        restarts: How often the job may be requeued.

    """
    # sbatch splits a directive at spaces and supports quotes.
    lines = [shlex.quote(f"--{name}" if value is None else f"--{name}={value}") for name, value in options.items()]
    # Everything that comes from the user is quoted for the shell.
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {line}" for line in [*lines, *extra]),
        environment="\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        folder=shlex.quote(folder),
        command=shlex.join(command),
        requeue=REQUEUE_CODE,
        restarts=restarts,
    )


def parse_time(text: str) -> int:
    """Convert a time limit in one of SLURM's forms to seconds: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        UsageError: the text has none of these forms, or the time is 0.

    """
    # D-H:M:S; without a dash, `days` is empty.
    days, dash, clock = text.rpartition("-")
    fields = clock.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise UsageError(f"--time {text}: write hours:minutes:seconds such as 4:00:00, minutes, or days-hours")
    numbers = [int(field) for field in fields]
    if dash:  # hours come first
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) < 3:  # minutes come first
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    else:
        hours, minutes, seconds = numbers
    total = int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds
    if total == 0:
        raise UsageError(f"--time {text} is no time at all")
    return total
