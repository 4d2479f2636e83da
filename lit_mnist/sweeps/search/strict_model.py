"""Base class of the models that a specification is read into; pydantic's errors as one line each."""

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
"""What each of pydantic's complaints about a type wanted, in the words of YAML."""


class StrictModel(BaseModel):
    """A mapping in YAML. Unknown keys are errors, and values are not converted: `"3"` and `true` are no numbers.

    An integer counts as a number, and `null` as a key that is left out.
    """

    # strict: pydantic would otherwise read "3" and true as numbers, and a typing error would start a sweep.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, content: Any) -> Any:
        """Refuse unknown keys here, since pydantic's own error does not know the nearest valid one."""
        if not isinstance(content, Mapping):
            return content
        # By its name in YAML: `int`, for one, is called `whole` here.
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in content:
            if key not in known:
                hint = nearest(str(key), known, listed=True)
                raise PydanticCustomError(UNKNOWN_KEY, "no such key", {"key": str(key), "hint": hint})
        # The default then holds: strict pydantic would refuse null for a field of a number.
        return {key: value for key, value in content.items() if value is not None}


Model = TypeVar("Model", bound=StrictModel)


def validate(model: type[Model], content: Any) -> Model:
    """Read the content of a YAML file into `model`.

    Raises:
        UsageError: something in it is wrong. The message is one line and begins with the key's path, such as
            `space: model.lr.high` or `objectives.2.metric`, where items of lists count from 1.

    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # The first one only: pydantic lists an error for each member of a union.
        raise UsageError(_explain(error.errors()[0], content)) from None


def _explain(error: ErrorDetails, content: Any) -> str:
    """One of pydantic's errors about `content` in one line."""
    # One branch for each kind of error that a specification can cause; pydantic's own text for the rest.
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
    """The keys of a location; without what pydantic adds to it, such as which member of a union it tried."""
    # Walk along the content: only the parts of the location that are keys there were written by the user.
    path, value = [], content
    for part in location:
        if isinstance(value, Mapping) and part in value:
            path.append(str(part))
        # Counted from 1, as people count the items of a list.
        elif isinstance(value, list) and isinstance(part, int):
            path.append(str(part + 1))
        else:
            continue
        value = value[part]
    return path


def _joined(path: list[str]) -> str:
    """Keys joined by dots; a parameter's name, which has dots itself, is set off from `space`."""
    if len(path) > 1 and path[0] == "space":
        return f"space: {'.'.join(path[1:])}"
    return ".".join(path)


def _quoted(names: str) -> list[str]:
    """The names in a list of pydantic's: `'tpe', 'random' or 'grid'`."""
    # pydantic gives the valid names only as text, for people.
    return re.findall(r"'([^']*)'", names)
