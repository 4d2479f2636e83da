"""Turns errors of jsonargparse, Lightning, torch and numpy about a wrong value into one line."""

import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lit_mnist.data import ImageDataModule
from lit_mnist.errors import Interrupted, LibraryError, UserError, nearest
from lit_mnist.models import LitModel

GROUPS: dict[str, type] = {"model": LitModel, "data": ImageDataModule, "trainer": Trainer}
OTHER_FLAGS = {
    "--config",
    "--seed_everything",
    "--threads",
    "--tracking.experiment",
    "--tracking.name",
    "--tracking.system_metrics",
    "--tracking.figures",
    "--checkpoint.every_n_steps",
    "--checkpoint.every_n_minutes",
}
COMPLAINTS = (
    MisconfigurationException,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions that Lightning, torch and numpy raise if a value is wrong."""


@contextmanager
def library_errors(subject: str, raised_in: Sequence[str] = ()) -> Iterator[None]:
    """Convert exceptions of libraries within the block to LibraryError, which is printed as one line.

    Args:
        subject: Begins the line, such as the group of flags that the block handles.
        raised_in: Folders of libraries, such as `/torch/optim/`. If given, only exceptions raised by code in these
            folders are converted; others may be bugs in a model, whose author needs the traceback.

    Raises:
        LibraryError: with the library's exception as its cause.

    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except COMPLAINTS as error:
        # The file of the innermost frame, which raised the exception.
        file = traceback.extract_tb(error.__traceback__)[-1].filename
        is_complaint = isinstance(error, MisconfigurationException) or any(folder in file for folder in raised_in)
        if raised_in and not is_complaint:
            raise
        raise LibraryError(error, subject) from error


def explain(message: str) -> str:
    """Convert jsonargparse's error `message` to one line: the flag, its value, and the valid values."""
    # jsonargparse's messages have several lines, with the class path and every alternative of the type.
    text = " ".join(message.split())
    # The order matters: the general patterns at the end also match the special cases before them.
    if found := re.search(r"class_path '([^']+)': Option '([^']+)' is not accepted", text):
        group, cls = _class(found[1])
        return f"--{group}.{found[2]}: {cls.__name__} has no {found[2]}{nearest(found[2], parameters(cls))}"
    pattern = r"class_path '([^']+)': Parser key \"([^\"]+)\": (.*?)(?: - Expected a <class 'NoneType'> Given.*)?$"
    if found := re.search(pattern, text):
        return f"--{_class(found[1])[0]}.{found[2]}: {_expected(found[3])}"
    if found := re.search(r"arguments are required: (\w+)", text):
        return f"--{found[1]} is missing: name a class, or a --config that does"
    if found := re.search(r"[uU]nrecognized arguments: (.*)", text):
        words = found[1].split()
        flag = next((word for word in words if word.startswith("--")), words[0]).partition("=")[0]
        if not flag.startswith("--"):
            return f"{flag!r} is not a flag"
        # `--lr` means `--model.lr`, but the two are too different for `nearest`.
        same_field = sorted(name for name in flags() if name.rpartition(".")[2] == flag.removeprefix("--"))
        return f"there is no {flag}{f'; did you mean {same_field[0]}?' if same_field else nearest(flag, flags())}"
    pattern = r"Parser key \"(model|data)\".*(?:Expected a dot import path string: |[Ii]mport of )([^\s:,]+)"
    if found := re.search(pattern, text):
        names = class_names(GROUPS[found[1]])
        return f"--{found[1]} {found[2]}: there is no such class{nearest(found[2], names, listed=True)}"
    # A class path in a file gives other messages than one in a flag.
    pattern = (
        r"Parser key \"(model|data)\".* - (?:Problem with given class_path '([^']+)': |Import path (\S+) )(.*?) - "
    )
    if found := re.search(pattern, text):
        path, why = found[2] or found[3], found[4]
        module, _, name = path.rpartition(".")
        missing = re.search(r"No module named '([^']+)'", why)
        # Otherwise the class or its module exists, and `why` says what is wrong with it.
        if f"has no attribute {name!r}" in why or (missing and f"{module}.".startswith(f"{missing[1]}.")):
            why = f"there is no such class{nearest(name, class_names(GROUPS[found[1]]), listed=True)}"
        return f"--{found[1]} {path}: {why}"
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        group, option = found.groups()
        hint = nearest(option, parameters(GROUPS[group])) if group in GROUPS else ""
        return f"{group}.{option}: {group} has no {option}{hint}"
    if found := re.search(r"^Option '([^']+)' is not accepted", text):
        return f"{found[1]}: no such field{nearest(found[1], [flag.removeprefix('--') for flag in flags()])}"
    if found := re.search(r"Parser key \"([^\"]+)\": (.*)", text):
        return f"--{found[1]}: {_expected(found[2])}"
    return text


def flags() -> set[str]:
    """Every flag of `fit`, for every model and dataset."""
    names = set(OTHER_FLAGS)
    # The fields of all classes, since the intended class is not known if the flags are wrong.
    for group, base in GROUPS.items():
        names.add(f"--{group}")
        for cls in (base, *subclasses(base).values()):
            names |= {f"--{group}.{name}" for name in parameters(cls)}
    return names


def subclasses(base: type) -> dict[str, type]:
    """Every direct and indirect subclass of `base`, by name."""
    children: list[type] = base.__subclasses__()
    # They include a user's own classes once these are imported.
    found = {child.__name__: child for child in children}
    for child in children:
        found |= subclasses(child)
    return found


def class_names(base: type) -> list[str]:
    """Names of the subclasses of `base` that can be trained: those without subclasses in this package."""
    return [name for name, cls in subclasses(base).items() if not is_base_class(cls)]


def is_base_class(cls: type) -> bool:
    """True if this package derives models or datasets from `cls`, which cannot be used by itself."""
    children: list[type] = cls.__subclasses__()
    return any(child.__module__.startswith("lit_mnist.") for child in children)


def parameters(cls: type) -> set[str]:
    """Names of the keyword arguments of `cls` and its base classes."""
    return {
        name
        # Every class of the hierarchy, because a subclass's signature shows its base's arguments only as
        # `**optimizer` or `**autoencoder`.
        for base in cls.__mro__
        if "__init__" in vars(base)
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if name != "self" and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def _expected(rest: str) -> str:
    """`expected float, not abc`, from jsonargparse's list of one error per alternative of a type hint."""
    kinds = re.findall(r"Expected an? (?:<class '([^']+)'>|typing\.(\w+\[[^\]]*\]))", rest)
    value = re.search(r"(?:Got value|Given value): (.*?)(?: - Expected|$)", rest)
    # A dict keeps the order and drops repetitions, since each member of a union reports its own error.
    names = dict.fromkeys((a or b).replace("NoneType", "null") for a, b in kinds)
    wanted = " or ".join(re.sub(r"Literal\[(.*)\]", r"one of \1", name) for name in names)
    given = "this" if value is None else "null" if value[1] == "None" else value[1]
    return f"expected {wanted}, not {given}" if wanted else rest


def _class(class_path: str) -> tuple[str, type]:
    """The group of flags and the class that a class path names."""
    name = class_path.rpartition(".")[2]
    for group, base in GROUPS.items():
        if name in (found := subclasses(base)):
            return group, found[name]
    return "model", LitModel
