"""Which of a run's checkpoints are logged to MLflow as artifacts, while it trains and when it has ended."""

from collections.abc import Sequence

from lit_mnist.terminal import note
from lit_mnist.tracking.run import Run
from lit_mnist.training.checkpoints.files import BEST, CHECKPOINTS, LAST, lasting_checkpoints


def upload_checkpoints(run: Run) -> None:
    """Log what another machine needs to go on if this one is lost: the best and the last checkpoint."""
    # Copies that are replaced while one of them is sent would arrive as a last checkpoint of now with a best one
    # of before. Skipped this time, they are logged at the next.
    unsent = (entry for _, entry in run.journal.entries(run.journal.sent))
    if any(entry["kind"] == "file" and entry["folder"] == CHECKPOINTS for entry in unsent):
        return
    # In this order, and as they are now: from a last checkpoint that is older than the best one, training makes
    # that best one again, but not the other way round.
    try:
        for name in (BEST, LAST):
            if (path := run.folder / CHECKPOINTS / name).exists():
                # A copy: the file itself is replaced by the next save, perhaps before it is uploaded.
                run.log_file(path, CHECKPOINTS, copy=True)
    except OSError as error:  # the training itself is saved; the next upload tries again
        note(f"run {run.id}: the checkpoints are not uploaded this time: {error}")


def log_checkpoints(run: Run, keep: str = "all", copy: bool = False) -> None:
    """Log the checkpoints of a training that has ended, also those of a user's own ModelCheckpoint.

    Args:
        run: The run.
        keep: `all` for the best and the last checkpoint, `best` for that one, `none` for neither.
        copy: Log copies, because the training will go on and replace the files, perhaps before they are uploaded.

    """
    for path in lasting_checkpoints(run.folder / CHECKPOINTS):
        if path.name not in _left_out(run, keep):
            run.log_file(path, CHECKPOINTS, copy=copy)


def delete_left_out(run: Run, keep: str) -> None:
    """Delete the artifacts that `log_checkpoints` leaves out, and that an upload in mid-training has logged."""
    for name in _left_out(run, keep):
        run.delete_artifact(f"{CHECKPOINTS}/{name}")


def _left_out(run: Run, keep: str) -> Sequence[str]:
    if keep == "none":
        return (BEST, LAST)
    # A training that was never validated has no best checkpoint: the last one stands for it.
    return (LAST,) if keep == "best" and (run.folder / CHECKPOINTS / BEST).exists() else ()
