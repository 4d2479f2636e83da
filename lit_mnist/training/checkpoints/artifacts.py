"""Which of a run's checkpoints are logged to MLflow as artifacts, during training and at its end."""

from collections.abc import Sequence

from lit_mnist.terminal import note
from lit_mnist.tracking.run import Run
from lit_mnist.training.checkpoints.files import BEST, CHECKPOINTS, LAST, lasting_checkpoints


def upload_checkpoints(run: Run) -> None:
    """Log the best and the last checkpoint, from which another machine can continue if this one is lost."""
    # If copies were replaced during an upload, a new last checkpoint could arrive with an older best one. So
    # nothing is logged while earlier copies are unsent; the next call does it.
    unsent = (entry for _, entry in run.journal.entries(run.journal.sent))
    if any(entry["kind"] == "file" and entry["folder"] == CHECKPOINTS for entry in unsent):
        return
    # The best checkpoint comes first: training from a last checkpoint that is older than the best one saves that
    # best one again, but the reverse is not true.
    try:
        for name in (BEST, LAST):
            if (path := run.folder / CHECKPOINTS / name).exists():
                # A copy, since the next save may replace the file before it is uploaded.
                run.log_file(path, CHECKPOINTS, copy=True)
    except OSError as error:  # the local checkpoint is safe; the next upload tries again
        note(f"run {run.id}: the checkpoints are not uploaded this time: {error}")


def log_checkpoints(run: Run, keep: str = "all", copy: bool = False) -> None:
    """Log the checkpoints of a training that has ended, including those of a user's own ModelCheckpoint.

    Args:
        run: The run.
        keep: `all` for the best and the last checkpoint, `best` for the best only, `none` for neither.
        copy: Log copies, because a resumed training may replace the files before they are uploaded.

    """
    for path in lasting_checkpoints(run.folder / CHECKPOINTS):
        if path.name not in _left_out(run, keep):
            run.log_file(path, CHECKPOINTS, copy=copy)


def delete_left_out(run: Run, keep: str) -> None:
    """Delete the artifacts that an upload during training has logged and that `keep` leaves out."""
    for name in _left_out(run, keep):
        run.delete_artifact(f"{CHECKPOINTS}/{name}")


def _left_out(run: Run, keep: str) -> Sequence[str]:
    if keep == "none":
        return (BEST, LAST)
    # A training without validation has no best checkpoint, so the last one is kept instead.
    return (LAST,) if keep == "best" and (run.folder / CHECKPOINTS / BEST).exists() else ()
