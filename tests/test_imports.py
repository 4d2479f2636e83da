"""Imports run one way; help imports nothing heavy; private names of other libraries stay in one module each."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lit_mnist
from lit_mnist.cli import COMMANDS

ROOT = Path(lit_mnist.__file__).parent
MODULES = {
    ".".join(("lit_mnist", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
FORBIDDEN = {
    "lit_mnist": ("lit_mnist.cli",),
    "lit_mnist.data": ("mlflow", "optuna", "models", "tracking", "training", "sweeps", "papers", "cluster"),
    "lit_mnist.models": ("mlflow", "optuna", "tracking", "training", "sweeps", "papers", "cluster"),
    "lit_mnist.tracking": ("optuna", "data", "models", "training", "sweeps", "papers", "cluster"),
    "lit_mnist.tracking.journal": ("tracking.queries", "tracking.command"),
    "lit_mnist.training": ("optuna", "sweeps", "papers", "cluster"),
    "lit_mnist.training.lightning": ("tracking", "training.checkpoints", "training.fit", "training.configuration"),
    "lit_mnist.training.checkpoints": (
        "training.fit",
        "training.evaluate",
        "training.stages",
        "training.resumable",
    ),
    "lit_mnist.sweeps": ("papers", "cluster"),
    "lit_mnist.sweeps.search": ("sweeps.study", "sweeps.workers", "sweeps.results", "sweeps.command"),
    "lit_mnist.sweeps.study": ("sweeps.workers", "sweeps.results", "sweeps.command"),
    "lit_mnist.sweeps.results": ("sweeps.command",),
    "lit_mnist.papers": ("sweeps", "cluster"),
    "lit_mnist.cluster": ("papers",),
}
"""Package or module to what it must not import; names without a dot are libraries or packages of lit_mnist."""
EXEMPT = {
    # The command `sync` uses the journal, and looks up the run that its argument names.
    ("lit_mnist.tracking.journal.sync", "tracking.queries"),
}
PRIVATE = {
    "lightning": ("lit_mnist.training.lightning",),
    "optuna": ("lit_mnist.sweeps.search.optuna_private",),
    "mlflow": ("lit_mnist.tracking.mlflow_private",),
}
"""Library to the one module or package that may use its private names."""
DOCUMENTED = {"_exit", "_replace"}
"""Documented names of Python's standard library that begin with an underscore: in `os`, and of named tuples."""
HEAVY = {
    "pydantic",
    "torch",
    "torchvision",
    "mlflow",
    "lightning",
    "optuna",
    "matplotlib",
    "jsonargparse",
    "sklearn",
}


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def _imports(module: str) -> Iterator[str]:
    """Every module, and every name of a module, that the module imports, at the top or inside a function."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if _is_in(module, package) and module != "lit_mnist.cli"
        for name in _imports(module)
        for target in FORBIDDEN[package]
        if (_is_in(name, target) or _is_in(name, f"lit_mnist.{target}")) and (module, target) not in EXEMPT
    ]
    assert not wrong


def test_there_are_no_import_cycles() -> None:
    graph = {
        module: {
            name if name in MODULES else name.rpartition(".")[0]
            for name in _imports(module)
            if _is_in(name, "lit_mnist")
        }
        & MODULES.keys() - {module}
        for module in MODULES
    }
    reached = {module: set(targets) for module, targets in graph.items()}
    for middle in MODULES:  # Warshall's transitive closure
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    cycles = {frozenset(other for other in reached[module] if module in reached[other]) for module in MODULES}
    assert [sorted(cycle) for cycle in cycles if cycle] == []


def test_private_names_of_other_libraries_are_used_in_one_module_each() -> None:
    ours = {name for module in MODULES for name in _private_names_defined(module)}
    allowed = tuple(module for modules in PRIVATE.values() for module in modules)
    wrong = []
    for module in MODULES:
        wrong += [
            f"{module} imports {name}"
            for name in _imports(module)
            for library, homes in PRIVATE.items()
            if _is_in(name, library) and "._" in name and not any(_is_in(module, home) for home in homes)
        ]
        if any(_is_in(module, home) for home in allowed):
            continue
        wrong += [
            f"{module}, line {node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(_tree(module))
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in ours | DOCUMENTED
        ]
    assert not wrong, "use a public name, or move this to the library's module in PRIVATE"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _private_names_defined(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and _is_private(node.name):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and _is_private(node.id):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in ("self", "cls")
            and _is_private(node.attr)
        ):
            yield node.attr


def test_help_imports_nothing_heavy() -> None:
    calls = [["--help"], ["--version"], ["fit"], *([command, "--help"] for command in COMMANDS)]
    program = (
        "import sys\n"
        "from lit_mnist.cli import main\n"
        f"for call in {calls!r}:\n"
        "    try:\n"
        "        code = main(call)\n"
        "    except SystemExit as exit:\n"
        "        code = exit.code\n"
        "    assert code == 0, call\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())
    assert all(done.stdout.count(f"usage: lit-mnist {call[0]}") for call in calls[2:])
