"""The first step of continuous integration runs as for a new user: without datasets, servers and settings."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
RECORD = """#!/bin/sh
echo "$* | ${LIT_MNIST_DATA-none} | ${LIT_MNIST_TEST_WITHOUT-none} | $(ls -A "$HOME" | wc -l)" >> "$CALLS"
"""


def test_the_first_step_of_ci_has_no_data_and_no_servers(tmp_path: Path) -> None:
    for program in ("make", "apt-get"):
        (tmp_path / program).write_text(RECORD)
        (tmp_path / program).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(Path.home()),
        "CALLS": str(tmp_path / "calls"),
        "LIT_MNIST_DATA": "/somewhere",
    }
    subprocess.run(["bash", str(SCRIPT)], env=environment, check=True, capture_output=True)
    first, *rest = (tmp_path / "calls").read_text().splitlines()
    assert first == "demo test | none | postgres slurm browser root | 0"
    assert rest[0].startswith("check |")
    assert rest[-1].startswith("test TESTS=") and "| none | none |" not in rest[-1]
