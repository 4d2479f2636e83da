"""A copy of the code, so that a job runs what was submitted, whatever happens to the checkout meanwhile."""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import lit_mnist

PACKAGE = Path(lit_mnist.__file__).parent


@dataclass(frozen=True)
class Snapshot:
    """The code of a job.

    Attributes:
        source: The checkout, or the folder that the package is installed in.
        folder: The copy; `source` itself if none was made.
        commit: The commit that is checked out; empty if `source` is no git checkout.
        digest: A hash of the names and contents of all files, 16 hexadecimal digits.
    """

    source: Path
    folder: Path
    commit: str
    digest: str


def checkout() -> Path:
    """The git checkout that this package belongs to, or the folder that it is installed in."""
    found = _git(PACKAGE, "rev-parse", "--show-toplevel")
    # A package that is installed below somebody else's checkout (a `.venv` there) does not belong to it.
    if found and _git(Path(found), "ls-files", str(PACKAGE / "__init__.py")):
        return Path(found)
    return PACKAGE.parent


def code_files(source: Path) -> list[Path]:
    """The files that make up the code, relative to `source`.

    In a checkout these are all files that git tracks, with uncommitted changes, and the untracked ones that it
    does not ignore; otherwise, and where git is not installed, those of the package.
    """
    # A `.git` file counts as well: a git worktree has one in the place of the folder.
    listed = ""
    if (source / ".git").exists():
        # -z: separated by NUL, since names may hold any other character.
        listed = _git(source, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    found = {Path(name) for name in listed.split("\0") if name}
    if not found:
        found = {path.relative_to(source) for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts}
    # Without files that git still lists and the user has deleted.
    return sorted(path for path in found if (source / path).is_file())


def code_digest(source: Path) -> str:
    """A hash of the names and contents of the code's files, 16 hexadecimal digits."""
    # Sorted, and with the name before each content: a renamed file changes the hash.
    hashed = hashlib.sha256()
    for path in code_files(source):
        hashed.update(f"{path}\0".encode() + hashlib.sha256((source / path).read_bytes()).digest())
    return hashed.hexdigest()[:16]


def plan_snapshot(target: Path | None) -> Snapshot:
    """Describe a copy of the code in `target` without making it; without a target, the checkout as it is."""
    source = checkout()
    return Snapshot(source, target or source, _git(source, "rev-parse", "HEAD"), code_digest(source))


def take_snapshot(target: Path) -> Snapshot:
    """Copy the code to `target`, which is replaced if it exists.

    Do not call this for the folder of a job that is queued or running: it would lose modules that it has not yet
    imported.
    """
    snapshot = plan_snapshot(target)
    # Beside its place, and renamed when it is complete: a copy that was interrupted is never run.
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    for path in code_files(snapshot.source):
        (temporary / path).parent.mkdir(parents=True, exist_ok=True)
        # With times and modes: scripts stay executable.
        shutil.copy2(snapshot.source / path, temporary / path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return snapshot


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; empty if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
