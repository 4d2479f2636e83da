"""A YAML reader that rejects duplicate keys and reads `1e-3` as a number, as the command line does."""

import re
from typing import Any

import yaml

from lit_mnist.errors import UsageError, one_line


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A key is given twice in one mapping."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with two silent errors corrected.

    PyYAML keeps only the last value of a duplicate key, and reads `1e-3` as a string, since YAML 1.1 requires
    `1.0e-3`.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict; raise DuplicateKeyError if a key is given twice."""
        lines: dict[str, int] = {}
        # Checked on the nodes: in the finished dict, the second value has already replaced the first.
        for key, _ in node.value:
            # Complex keys such as `? [a, b]` are left to PyYAML; no configuration here uses them.
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                problem = f"{key.value} is given twice, first in line {lines[key.value]}: keep one"
                raise DuplicateKeyError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


# The last argument lists the first characters (sign or digit) for which PyYAML tries this pattern.
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
    """Reject YAML text with a duplicate key; all other errors are left to the code that parses the text.

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
