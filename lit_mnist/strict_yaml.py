"""YAML that refuses a key given twice, and reads `1e-3` as a number like the command line does."""

import re
from typing import Any

import yaml

from lit_mnist.errors import UsageError, one_line


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A key is given twice in one mapping."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without two of its silent mistakes.

    Of a key given twice it keeps the last value, and `1e-3` is a text to it: YAML 1.1 wants `1.0e-3`.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict, unless a key comes twice."""
        lines: dict[str, int] = {}
        # Here and not on the finished dict, in which the second value has replaced the first.
        for key, _ in node.value:
            # `? [a, b]` and the like, which no configuration here has: left to PyYAML.
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                problem = f"{key.value} is given twice, first in line {lines[key.value]}: keep one"
                raise DuplicateKeyError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


# The first characters by which PyYAML looks this rule up: a sign or a digit.
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_yaml(text: str) -> Any:
    """Parse a YAML text; None if it is empty.

    Raises:
        UsageError: it is not YAML, or has a key twice; the message begins with the line.

    """
    try:
        return yaml.load(text, StrictLoader)
    # PyYAML raises a ValueError for a date such as 2026-13-01, and a RecursionError for a thousand open brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise UsageError(f"line {mark.line + 1}: {problem}" if mark else one_line(error)) from None


def check_unique_keys(text: str) -> None:
    """Refuse a YAML text that has a key twice; whatever else is wrong with it is left to its reader.

    Raises:
        UsageError: a key is given twice; the message begins with the line.

    """
    try:
        yaml.load(text, StrictLoader)
    except DuplicateKeyError as error:
        assert error.problem_mark is not None
        raise UsageError(f"line {error.problem_mark.line + 1}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
