"""A disk that fills up during a run: the error is one line, and the run is set to FAILED."""

import subprocess
import sys
from pathlib import Path

from disks import on_small_disk

PROGRAM = """
import errno
from pathlib import Path
from lit_mnist.guard import guarded
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store

Path("pyproject.toml").touch()

def work():
    with open_run("e", "fills the disk") as run:
        run.log_metrics({"loss": 1.0}, 0)
        with Path("hog").open("wb", buffering=0) as hog:
            try:
                while hog.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
        for step in range(1, 10**6):
            run.log_metrics({"loss": 1.0}, step)

code = guarded(work)
Path("hog").unlink()
client = connect(find_store())
(run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
points = client.get_metric_history(run.info.run_id, "loss")
print(code, run.info.status, len(points) > 0, len({p.step for p in points}) == len(points))
"""


def test_a_full_disk_ends_the_run_as_failed_with_one_line(project: Path) -> None:
    disk = project / "disk"
    command = on_small_disk(disk, 4, [sys.executable, "-c", PROGRAM])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "1 FAILED True True\n", done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"lit-mnist: error: cannot write {disk}/mlruns/runs/")
    assert errors[0].endswith("spool.jsonl: No space left on device")
    assert "Traceback" not in done.stderr
