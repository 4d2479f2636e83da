"""A copy of the code, so that a job runs the code at submission even if the checkout changes."""

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
        folder: The copy; `source` itself if there is no copy.
        commit: The commit that is checked out; empty if `source` is not a git checkout.
        digest: A hash of the names and contents of all files, 16 hexadecimal digits.
    """

    source: Path
    folder: Path
    commit: str
    digest: str


def checkout() -> Path:
    """The git checkout that this package belongs to, or the folder that it is installed in."""
    found = _git(PACKAGE, "rev-parse", "--show-toplevel")
    # A package that is installed inside another checkout (in a `.venv`) does not belong to that checkout.
    if found and _git(Path(found), "ls-files", str(PACKAGE / "__init__.py")):
        return Path(found)
    return PACKAGE.parent


def code_files(source: Path) -> list[Path]:
    """The files of the code, relative to `source`.

    In a checkout these are all tracked files, with uncommitted changes, and all untracked files that git does not
    ignore. Otherwise, or if git is not installed, they are the files of the package.
    """
    # `.git` may also be a file, in a git worktree.
    listed = ""
    if (source / ".git").exists():
        # -z separates names by NUL, since they may contain any other character.
        listed = _git(source, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    found = {Path(name) for name in listed.split("\0") if name}
    if not found:
        found = {path.relative_to(source) for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts}
    # Without files that git still lists but the user has deleted.
    return sorted(path for path in found if (source / path).is_file())


def code_digest(source: Path) -> str:
    """A hash of the names and contents of the code's files, 16 hexadecimal digits."""
    # With the name before each content, so that renaming a file changes the hash.
    hashed = hashlib.sha256()
    for path in code_files(source):
        hashed.update(f"{path}\0".encode() + hashlib.sha256((source / path).read_bytes()).digest())
    return hashed.hexdigest()[:16]


def plan_snapshot(target: Path | None) -> Snapshot:
    """Describe a copy of the code in `target` without creating it; without a target, describe the checkout."""
    source = checkout()
    return Snapshot(source, target or source, _git(source, "rev-parse", "HEAD"), code_digest(source))


def take_snapshot(target: Path) -> Snapshot:
    """Copy the code to `target`, which is replaced if it exists.

    Do not call this for the folder of a queued or running job, which would lose modules that it has not yet
    imported.
    """
    snapshot = plan_snapshot(target)
    # Renamed when complete, so that an interrupted copy is never used.
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    for path in code_files(snapshot.source):
        (temporary / path).parent.mkdir(parents=True, exist_ok=True)
        # copy2 keeps times and modes, so that scripts stay executable.
        shutil.copy2(snapshot.source / path, temporary / path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return snapshot


def _git(folder: Path, *arguments: str) -> str:
    """The output of git; empty if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
