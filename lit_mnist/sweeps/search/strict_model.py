"""Base class of the pydantic models of a specification, and conversion of pydantic's errors to one line."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from lit_mnist.errors import UsageError, nearest

UNKNOWN_KEY = "unknown_key"
EXPECTED = {
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "names with values",
    "model_type": "names with values",
    "model_attributes_type": "names with values",
}
"""The expected type for each of pydantic's type errors, in terms of YAML."""


class StrictModel(BaseModel):
    """A mapping in YAML. Unknown keys are errors, and values are not converted: `"3"` and `true` are not numbers.

    An integer is accepted as a number, and `null` means that the key is left out.
    """

    # strict, since pydantic would otherwise accept "3" and true as numbers.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, content: Any) -> Any:
        """Reject unknown keys here, since pydantic's own error does not suggest the most similar valid key."""
        if not isinstance(content, Mapping):
            return content
        # Names in YAML, which may differ from the attribute: `int` is called `whole` here.
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in content:
            if key not in known:
                hint = nearest(str(key), known, listed=True)
                raise PydanticCustomError(UNKNOWN_KEY, "no such key", {"key": str(key), "hint": hint})
        # Remove null values, so that defaults apply: strict pydantic would reject null for a number.
        return {key: value for key, value in content.items() if value is not None}


Model = TypeVar("Model", bound=StrictModel)


def validate(model: type[Model], content: Any) -> Model:
    """Read the content of a YAML file into `model`.

    Raises:
        UsageError: the content is wrong. The message is one line and begins with the path of the key, such as
            `space: model.lr.high` or `objectives.2.metric`, where items of lists count from 1.

    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # Only the first error, since pydantic lists an error for each member of a union.
        raise UsageError(_explain(error.errors()[0], content)) from None


def _explain(error: ErrorDetails, content: Any) -> str:
    """Convert one of pydantic's errors about `content` to one line."""
    # One branch for each kind of error that a specification usually causes; pydantic's own text otherwise.
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    path = _path(error["loc"], content)
    if kind == UNKNOWN_KEY:
        return f"{_joined([*path, context['key']])}: no such key{context['hint']}"
    if kind == "missing":
        return f"{_joined([*path, str(error['loc'][-1])])} is missing"
    if kind == "union_tag_not_found":
        return f"{_joined([*path, context['discriminator'].strip(chr(39))])} is missing"
    where = _joined(path) or "the spec"
    if kind in EXPECTED:
        return f"{where}: expected {EXPECTED[kind]}, not {value!r}"
    if kind == "literal_error":
        return f"{where}: there is no {value}{nearest(str(value), _quoted(context['expected']), listed=True)}"
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return f"{where}: there is no {tag}{nearest(tag, _quoted(context['expected_tags']), listed=True)}"
    if kind == "greater_than_equal":
        return f"{where}: {value!r} must be at least {context['ge']:g}"
    if kind == "greater_than":
        return f"{where}: {value!r} must be above {context['gt']:g}"
    if kind == "less_than_equal":
        return f"{where}: {value!r} must be at most {context['le']:g}"
    if kind == "value_error":
        return f"{where}: {context['error']}"
    return f"{where}: {error['msg']}"


def _path(location: tuple[int | str, ...], content: Any) -> list[str]:
    """The keys of a location, without parts that pydantic adds, such as the member of a union that it tried."""
    # Follow the location through the content: only parts that are keys in it were written by the user.
    path, value = [], content
    for part in location:
        if isinstance(value, Mapping) and part in value:
            path.append(str(part))
        # Users count the items of a list from 1.
        elif isinstance(value, list) and isinstance(part, int):
            path.append(str(part + 1))
        else:
            continue
        value = value[part]
    return path


def _joined(path: list[str]) -> str:
    """The keys joined by dots; after `space` comes a colon, since parameters' names contain dots."""
    if len(path) > 1 and path[0] == "space":
        return f"space: {'.'.join(path[1:])}"
    return ".".join(path)


def _quoted(names: str) -> list[str]:
    """The names in pydantic's text `'tpe', 'random' or 'grid'`, which it does not provide in another form."""
    return re.findall(r"'([^']*)'", names)
