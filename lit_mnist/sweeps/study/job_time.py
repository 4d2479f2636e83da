"""Whether a SLURM job has enough time left to begin a trial."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from lit_mnist.errors import UserError
from lit_mnist.slurm import REQUEUE_CODE, time_limit, warning_time
from lit_mnist.terminal import seconds

FIRST_SAVE = "first_save"
"""Trial attribute: seconds from the start of its training to its first checkpoint or validation."""
RECENT = 20
"""Number of the newest measured trials that are used for the estimate."""


class JobEndsError(UserError):
    """The job's time limit is too near to begin another trial; the study is not finished."""

    exit_code = REQUEUE_CODE


def reason_to_stop(trials: Sequence[FrozenTrial]) -> UserError | None:
    """Return why no further trial should begin in this job; None if one may begin, and outside SLURM.

    A trial that ends before its first checkpoint has to be trained again from its start by the next job. The time
    to the first checkpoint is estimated by the slowest of the newest trials, and as 0 before any was measured.

    Args:
        trials: The study's trials.

    Returns:
        A JobEndsError, with the exit code that requeues the job, or a UserError if no job with this time limit has
        enough time.

    """
    limit = time_limit()
    if limit is None:
        return None
    # The newest trials, since they may be larger than the first ones; the slowest of these, to be safe.
    measured = [trial.user_attrs[FIRST_SAVE] for trial in trials if FIRST_SAVE in trial.user_attrs]
    needed = max(measured[-RECENT:], default=0.0)
    # The trial ends at SLURM's warning, which comes before the time limit.
    left, total = (value - warning_time(limit.total) for value in (limit.left, limit.total))
    if left > needed:
        return None
    text = f"a trial takes {seconds(needed)} to its first checkpoint" if needed else "no trial has been timed yet"
    # A new start of the job would not help either: without this check it would be requeued forever.
    if needed >= total:
        return UserError(f"{text}, more than the {seconds(total)} that this job's time limit leaves: raise --time")
    return JobEndsError(f"the job ends in {seconds(limit.left)}, and {text}: the next start of the job goes on")
