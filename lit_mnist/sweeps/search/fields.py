"""YAML read strictly: every key is known, has the type it should have, and stands there once."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from lit_mnist.errors import UsageError, nearest


class Fields:
    """The fields of one mapping, taken one by one; what is left over in the end is unknown.

    Args:
        where: How messages call the mapping, such as `space: model.lr`; empty at the top.
        values: Its content.

    Raises:
        UsageError: it is no mapping.

    """

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise UsageError(f"{where or 'the spec'}: expected names with values, not {values!r}")
        self.where, self.values, self.known = where, dict(values), list[str]()

    def take(self, key: str, kind: type, default: Any = None, required: bool = False) -> Any:
        """The value of `key`, a number of type `float` also where it was written as an integer."""
        self.known.append(key)
        if self.values.get(key) is None:
            if required:
                raise UsageError(f"{self.name(key)} is missing{nearest(key, self.values)}")
            return default
        return as_kind(self.name(key), self.values[key], kind)

    def done(self) -> None:
        """Refuse keys that nobody took."""
        for key in self.values:
            if key not in self.known:
                raise UsageError(f"{self.name(str(key))}: no such key{nearest(str(key), self.known, listed=True)}")

    def name(self, key: str) -> str:
        """How messages call `key`."""
        return f"{self.where}.{key}" if self.where else key


_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


def as_kind(where: str, value: Any, kind: type) -> Any:
    """`value` if it is of that type.

    Raises:
        UsageError: it is not.

    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{where}: expected {_KINDS[kind]}, not {value!r}")
    return value


def one_of(where: str, value: str, names: Iterable[str]) -> str:
    """`value` if it is among `names`.

    Raises:
        UsageError: it is not.

    """
    if value not in (names := list(names)):
        raise UsageError(f"{where}: there is no {value}{nearest(value, names, listed=True)}")
    return value


class _Loader(yaml.SafeLoader):
    """Plain YAML that takes 1e-3 for a number, as the command line does, and refuses a key that comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        UsageError: it is not YAML, or has a key twice.

    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise UsageError(f"line {mark.line + 1}: {problem}" if mark else " ".join(str(error).split())) from None
