"""jsonargparse's accounts of what is wrong, put as one line with the nearest valid name."""

import inspect
import re
from typing import Any

from lightning.pytorch import Trainer

from lit_mnist.data import ImageDataModule
from lit_mnist.errors import nearest
from lit_mnist.models import LitModel

__all__ = ["GROUPS", "explain", "flags", "nearest", "parameters", "subclasses"]

GROUPS: dict[str, type] = {"model": LitModel, "data": ImageDataModule, "trainer": Trainer}


def explain(message: str) -> str:
    """What `message` says is wrong, in one line: the flag, its value, what is valid."""
    text = " ".join(message.split())
    for pattern, say in _CASES:
        if found := re.search(pattern, text):
            line: str = say(text, *found.groups())
            return line
    return text


def subclasses(base: type) -> dict[str, type]:
    """Every class below `base`, by name."""
    children: list[type] = base.__subclasses__()
    found = {child.__name__: child for child in children}
    for child in children:
        found |= subclasses(child)
    return found


def parameters(cls: type) -> set[str]:
    """Names of what `cls` and its bases take."""
    return {
        name
        for base in cls.__mro__
        if "__init__" in vars(base)
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if name != "self" and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def flags() -> set[str]:
    """Every flag of `fit`."""
    names = {
        "--config",
        "--seed_everything",
        "--tracking.experiment",
        "--tracking.name",
        "--tracking.system_metrics",
        "--tracking.figures",
    }
    for group, base in GROUPS.items():
        names.add(f"--{group}")
        for cls in (base, *subclasses(base).values()):
            names |= {f"--{group}.{name}" for name in parameters(cls)}
    return names


def _unrecognized(text: str, given: str) -> str:
    flag = next((word for word in given.split() if word.startswith("--")), given.split()[0])
    flag = flag.partition("=")[0]
    if not flag.startswith("--"):
        return f"{flag!r} is not a flag"
    # `--lr` for `--model.lr` is no misspelling that a comparison of the whole would find.
    bare = [name for name in flags() if name.rpartition(".")[2] == flag.removeprefix("--")]
    hint = f"; did you mean {sorted(bare)[0]}?" if bare else nearest(flag, flags())
    return f"there is no {flag}{hint}"


def _missing(text: str, names: str) -> str:
    return f"--{names} is missing: name a class, or a --config that does"


def _unknown_option(text: str, class_path: str, option: str) -> str:
    group, cls = _class(class_path)
    return f"--{group}.{option}: {cls.__name__} has no {option}{nearest(option, parameters(cls))}"


def _wrong_value(text: str, class_path: str, option: str, rest: str) -> str:
    group, _ = _class(class_path)
    return f"--{group}.{option}: {_expected(rest)}"


def _wrong_plain_value(text: str, option: str, rest: str) -> str:
    return f"--{option}: {_expected(rest)}"


def _unknown_class(text: str, group: str, name: str) -> str:
    names = [n for n, cls in subclasses(GROUPS[group]).items() if not cls.__subclasses__()]
    return f"--{group} {name}: there is no such class{nearest(name, names, listed=True)}"


def _unknown_in_group(text: str, group: str, option: str) -> str:
    names = parameters(GROUPS[group]) if group in GROUPS else set()
    return f"{group}.{option}: {group} has no {option}{nearest(option, names)}"


def _unknown_key(text: str, key: str) -> str:
    names = {flag.removeprefix("--") for flag in flags()}
    return f"{key}: no such field{nearest(key, names)}"


def _expected(rest: str) -> str:
    """`expected float, not abc`, out of what may be several alternatives."""
    kinds = re.findall(r"Expected an? (?:<class '([^']+)'>|typing\.(\w+\[[^\]]*\]))", rest)
    value = re.search(r"(?:Got value|Given value): (.*?)(?: - Expected|$)", rest)
    names = dict.fromkeys((a or b).replace("NoneType", "null") for a, b in kinds)
    wanted = " or ".join(re.sub(r"Literal\[(.*)\]", r"one of \1", name) for name in names)
    return f"expected {wanted}, not {value.group(1) if value else 'this'}"


def _class(class_path: str) -> tuple[str, Any]:
    name = class_path.rpartition(".")[2]
    for group, base in GROUPS.items():
        if name in (found := subclasses(base)):
            return group, found[name]
    return "model", LitModel


_CASES: list[tuple[str, Any]] = [
    (r"class_path '([^']+)': Option '([^']+)' is not accepted", _unknown_option),
    (
        r"class_path '([^']+)': Parser key \"([^\"]+)\": (.*?)(?: - Expected a <class 'NoneType'> Given.*)?$",
        _wrong_value,
    ),
    (r"arguments are required: (\w+)", _missing),
    (r"[uU]nrecognized arguments: (.*)", _unrecognized),
    (r"Parser key \"(model|data)\".*Expected a dot import path string: (\S+)", _unknown_class),
    (r"Parser key \"(model|data)\".*[Ii]mport of (\S+?)[:,]? ", _unknown_class),
    (r"Group '([^']+)' does not accept option '([^']+)'", _unknown_in_group),
    (r"^Option '([^']+)' is not accepted", _unknown_key),
    (r"Parser key \"([^\"]+)\": (.*)", _wrong_plain_value),
]
