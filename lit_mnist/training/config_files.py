"""Configuration files: the packaged names, and strict YAML. Imports nothing heavy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lit_mnist.errors import UsageError, nearest

CONFIGS = Path(__file__).parent.parent / "configs"
"""Folder of the packaged configurations."""
SECTIONS = ("trainer", "tracking", "checkpoint")
"""Sections that must be mappings; `model` and `data` may also be the name of a class."""


def config_names() -> list[str]:
    """Names of the packaged configurations, such as `zhang/cnn`."""
    return sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))


def config_path(name: str) -> Path:
    """The file of a packaged configuration, or of a path, which is checked.

    Raises:
        UsageError: there is no such configuration, or the file is no configuration.

    """
    path = Path(name)
    if not path.is_file():
        if name not in config_names():
            hint = nearest(name, config_names(), listed=True)
            raise UsageError(f"--config {name}: no such file or packaged configuration{hint}")
        return CONFIGS / f"{name}.yaml"
    try:
        text = path.read_text()
        fields = yaml.safe_load(text)
        check_unique_keys(text)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from None
    except UsageError as error:
        raise UsageError(f"--config {path} has {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"--config {path} is not YAML: {yaml_problem(error)}") from None
    if fields is None:
        raise UsageError(f"--config {path} is empty: it needs fields such as model, data and trainer")
    if not isinstance(fields, dict):
        raise UsageError(f"--config {path} holds no fields such as model, data and trainer")
    for section in SECTIONS:
        if section in fields and not isinstance(fields[section], dict):
            raise UsageError(f"--config {path}: {section} is {fields[section]!r}; give it fields, or leave it out")
    return path


def yaml_problem(error: Exception) -> str:
    """What a YAML reader's error says, in one line, with the line of the text where it knows that."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark else " ".join(str(error).split())


def check_unique_keys(text: str) -> None:
    """Refuse YAML that has a key twice in one mapping: its readers would silently keep the last value.

    Raises:
        UsageError: it has; the message names the key and its lines.
        yaml.YAMLError: the text is not YAML.

    """

    def mappings(node: Any) -> Iterator[yaml.MappingNode]:
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                yield from mappings(child)
        elif isinstance(node, yaml.MappingNode):
            yield node
            for _, child in node.value:
                yield from mappings(child)

    for mapping in mappings(yaml.compose(text, Loader=yaml.SafeLoader)):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if key.value in lines and isinstance(key, yaml.ScalarNode):
                first = lines[key.value]
                where = f", in lines {first} and {line}" if first != line else ""
                raise UsageError(f"{key.value} twice{where}: keep one")
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = line
