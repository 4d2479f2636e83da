"""A small file system that a test can fill up."""

import shutil
import subprocess
from pathlib import Path

import pytest


def on_small_disk(folder: Path, megabytes: int, command: list[str]) -> list[str]:
    """Wrap `command` so that it runs on a small tmpfs at `folder`; skips the test if mounting is not permitted."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$0" && cd "$0" && exec "$@"'
    folder.mkdir()
    prefix = ["unshare", "-rm", "sh", "-c", mount, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted")
    return [*prefix, *command]
