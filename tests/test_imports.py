"""Imports run one way, and a question of the command line is not answered by way of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lit_mnist

ROOT = Path(lit_mnist.__file__).parent
OWN = ("papers", "sweeps", "training", "tracking", "models", "data", "cli")
FORBIDDEN = {
    "models": {"mlflow", "optuna", *(f"lit_mnist.{name}" for name in OWN if name not in ("models", "data"))},
    "data": {"mlflow", "optuna", *(f"lit_mnist.{name}" for name in OWN if name != "data")},
    "tracking": {"optuna", *(f"lit_mnist.{name}" for name in OWN if name != "tracking")},
    "training": {"optuna", *(f"lit_mnist.{name}" for name in ("papers", "sweeps", "cli"))},
    "sweeps": {"lit_mnist.papers", "lit_mnist.cli"},
    "": {"lit_mnist.cli"},
}
QUESTIONS = [["--help"], ["--version"], ["fit"], ["fit", "--help"]] + [
    [command, "--help"]
    for command in ("validate", "test", "predict", "sweep", "runs", "compare", "sync", "ui", "data", "reproduce")
]
HEAVY = {"torch", "torchvision", "mlflow", "lightning", "optuna", "matplotlib", "jsonargparse", "sklearn"}


def _imports(path: Path) -> set[str]:
    """Every module that the file imports, at its top or anywhere in it, with all the packages above it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(parts[: i + 1]) for parts in (name.split(".") for name in names) for i in range(len(parts))}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    files = [path for path in (ROOT / package).rglob("*.py") if path != ROOT / "cli.py"]
    assert files or not (ROOT / package).exists()
    wrong = {str(path): sorted(found) for path in files if (found := _imports(path) & FORBIDDEN[package])}
    assert not wrong


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from lit_mnist.cli import main\n"
        f"for question in {QUESTIONS!r}:\n"
        "    try:\n"
        "        code = main(question)\n"
        "    except SystemExit as exit:\n"
        "        code = exit.code\n"
        "    assert code == 0, question\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())
    assert all(done.stdout.count(f"usage: lit-mnist {question[0]}") for question in QUESTIONS[2:])
