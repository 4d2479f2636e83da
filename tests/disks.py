"""A small disk that a test may fill."""

import shutil
import subprocess
from pathlib import Path

import pytest


def on_small_disk(folder: Path, megabytes: int, command: list[str]) -> list[str]:
    """`command`, run in a disk of its own that is mounted at `folder`; skips where that is not allowed."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$0" && cd "$0" && exec "$@"'
    folder.mkdir()
    prefix = ["unshare", "-rm", "sh", "-c", mount, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("needs leave to mount a small disk")
    return [*prefix, *command]
