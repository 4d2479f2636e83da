"""Configuration files: the packaged ones by name, others by path. Imports nothing heavy."""

from pathlib import Path

from lit_mnist.errors import UsageError, nearest
from lit_mnist.strict_yaml import load_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
"""Folder of the packaged configurations."""
SECTIONS = ("trainer", "tracking", "checkpoint")
"""Sections that must be mappings; `model` and `data` may also be the name of a class."""


def config_names() -> list[str]:
    """Names of the packaged configurations, such as `zhang/cnn`."""
    return sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))


def config_path(name: str) -> Path:
    """The path of a packaged configuration's file, or the given path after checking its content.

    Raises:
        UsageError: there is no such configuration, or the file is no configuration.

    """
    path = Path(name)
    # A user's file takes precedence, so that it keeps working if a packaged configuration of the same name is
    # added.
    if not path.is_file():
        if name not in config_names():
            hint = nearest(name, config_names(), listed=True)
            raise UsageError(f"--config {name}: no such file or packaged configuration{hint}")
        return CONFIGS / f"{name}.yaml"
    try:
        # jsonargparse reads the file again; it is read here so that an error names the file and the line.
        fields = load_yaml(path.read_text())
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from None
    except UsageError as error:
        raise UsageError(f"--config {path}, {error}") from None
    if fields is None:
        raise UsageError(f"--config {path} is empty: it needs fields such as model, data and trainer")
    if not isinstance(fields, dict):
        raise UsageError(f"--config {path} holds no fields such as model, data and trainer")
    for section in SECTIONS:
        if section in fields and not isinstance(fields[section], dict):
            raise UsageError(f"--config {path}: {section} is {fields[section]!r}; give it fields, or leave it out")
    return path
