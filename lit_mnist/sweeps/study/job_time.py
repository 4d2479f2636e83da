"""Whether the time that is left of a SLURM job is enough to begin a trial."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from lit_mnist.errors import UserError
from lit_mnist.slurm import REQUEUE_CODE, time_limit, warning_time
from lit_mnist.terminal import seconds

FIRST_SAVE = "first_save"
"""Trial attribute: seconds from the start of its training to its first checkpoint or validation."""
RECENT = 20
"""How many of the newest measured trials the estimate for the next one looks at."""


class JobEndsError(UserError):
    """The job's time limit is too near to begin another trial; the study is not finished."""

    exit_code = REQUEUE_CODE


def reason_to_stop(trials: Sequence[FrozenTrial]) -> UserError | None:
    """Return why no trial should be begun in this job any more; None if one may be, and outside SLURM.

    A trial that is ended before its first checkpoint has to be trained anew by the next job. The time to it is
    that of the slowest of the newest trials; before any was measured it counts as nothing.

    Args:
        trials: The study's.

    Returns:
        A JobEndsError, with the exit code that requeues the job, or a UserError if no job with this time limit has
        enough time.

    """
    limit = time_limit()
    if limit is None:
        return None
    # The newest ones, since later trials may be larger than the first; of these the slowest, to be on the safe
    # side.
    measured = [trial.user_attrs[FIRST_SAVE] for trial in trials if FIRST_SAVE in trial.user_attrs]
    needed = max(measured[-RECENT:], default=0.0)
    # The warning before the time limit ends the trial, not the time limit itself.
    left, total = (value - warning_time(limit.total) for value in (limit.left, limit.total))
    if left > needed:
        return None
    text = f"a trial takes {seconds(needed)} to its first checkpoint" if needed else "no trial has been timed yet"
    # Another start of the job would not help either: without this it would be requeued for ever.
    if needed >= total:
        return UserError(f"{text}, more than the {seconds(total)} that this job's time limit leaves: raise --time")
    return JobEndsError(f"the job ends in {seconds(limit.left)}, and {text}: the next start of the job goes on")
