"""The provenance of a run, as tags: user, command, code, packages and machine."""

import getpass
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path

import lit_mnist
from lit_mnist.tracking.process import process_tags, shown_arguments

NAMED = ("torch", "torchvision", "lightning", "torchmetrics", "mlflow", "optuna", "numpy")
"""Packages whose versions are tags, which the UI shows as columns."""


def source_tags() -> dict[str, str]:
    """Tags with the user, the command and the process that started a run."""
    return {
        # The command as a user would type it; `shown_arguments` leaves out passwords.
        "mlflow.source.name": " ".join(["lit-mnist", *shown_arguments()]),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
        **process_tags(),
    }


SNAPSHOT = "LIT_MNIST_CODE"
"""Environment variable of a submitted job: COMMIT:DIGEST of the copy of the code that it runs."""


def git_state(exclude: Sequence[str] = ()) -> dict[str, str]:
    """Tags with the commit of the code's repository, or of the working directory, and whether files were changed.

    The code of a submitted job is a copy, whose commit and hash `lit-mnist submit` has stored in SNAPSHOT.

    Args:
        exclude: Paths below the repository's root whose changes do not count.

    """
    # The copy has no .git.
    if SNAPSHOT in os.environ:
        commit, _, digest = os.environ[SNAPSHOT].partition(":")
        return {"mlflow.source.git.commit": commit or "unknown", "code.digest": digest}
    # An installed package has no repository; then the user's own project counts.
    for folder in (Path(lit_mnist.__file__).parent, Path.cwd()):
        if found := _git(folder, "rev-parse", "HEAD"):
            ignored = [f":(exclude,top){path}" for path in exclude]
            # `:/` is the repository's root, so that changes outside this folder count too.
            changes = _git(folder, "status", "--porcelain", "--", ":/", *ignored)
            dirty = "unknown" if changes is None else str(bool(changes)).lower()
            return {"mlflow.source.git.commit": found, "git.dirty": dirty}
    return {"mlflow.source.git.commit": "unknown", "git.dirty": "unknown"}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    # With a time limit, in case the repository is on a network file system that does not answer.
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Name and version of every installed distribution, sorted by name."""
    # Broken installations may have distributions without a name.
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def version_tags(versions: dict[str, str]) -> dict[str, str]:
    """Tags for the most important of `versions`, for this package's and Python's."""
    tags = {f"version.{name}": versions[name] for name in NAMED if name in versions}
    return tags | {"version.lit_mnist": lit_mnist.__version__, "version.python": platform.python_version()}


def user_name() -> str:
    """The user's name, or the user id if there is no name, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def device_tags(device_type: str, devices: int) -> dict[str, str]:
    """Tags for the hardware of a run: type, number and model of the devices, threads, host."""
    import torch

    name = torch.cuda.get_device_name() if device_type == "cuda" else _cpu_model()
    return {
        "device": f"{device_type} × {devices}: {name}",
        # The number of threads affects how sums are rounded.
        "torch_threads": str(torch.get_num_threads()),
        "host": platform.node(),
    }


def _cpu_model() -> str:
    # platform.processor() does not name the model on Linux.
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
