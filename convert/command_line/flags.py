"""Flags: a frozen dataclass is a command, and each of its fields describes one flag, once."""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import InputError, about

NONE = ("None", "none")
"""Texts that give a flag the value None on a command line."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """The description of a flag, beside its type and default."""

    help: str
    """One or two sentences, without the default."""
    brief: str = ""
    """The same in half a line, for the short help; the first sentence by default."""
    metavar: str = ""
    """The word for the value in the help: MODEL, PATH, N."""
    default_text: str = ""
    """The default in words, where the value alone does not tell."""
    group: str = ""
    """Where it stands in the help."""
    is_common: bool = False
    """True if the short help shows it."""
    low: float | None = None
    """The least value, which is allowed unless `above` says otherwise."""
    high: float | None = None
    """The largest value, which is allowed."""
    is_above: bool = False
    """True if values must be above `low`, and finite."""
    is_positional: bool = False
    """True if it is given without its name."""
    may_stand_alone: bool = False
    """True if the flag may stand alone, as a switch, or with a text."""


def flag(default: Any = dataclasses.MISSING, help: str = "", *, kind: type[Flag] = Flag, **about: Any) -> Any:
    """Return a dataclass field that describes a flag; see `Flag` for what it may be told."""
    return field(default=default, metadata={"flag": kind(help=help, **about)})


@dataclass(frozen=True)
class Value:
    """The type of a flag's value, taken apart."""

    of: type
    """`str`, `int`, `float`, `Path` or `bool`."""
    choices: tuple[str, ...] = ()
    is_tuple: bool = False
    """True for a tuple of such values."""
    may_be_none: bool = False


def flags_of(command: type) -> dict[str, Flag]:
    """Return the flags of a command by the names of their fields, in the order of their arguments."""
    ordered = sorted(dataclasses.fields(command), key=lambda item: item.kw_only is True)  # inherited flags come last
    return {item.name: item.metadata["flag"] for item in ordered}


def values_of(command: type) -> dict[str, Value]:
    """Return the types of a command's flags by the names of their fields."""
    return {name: _value(hint) for name, hint in typing.get_type_hints(command).items()}


def defaults_of(command: type) -> dict[str, Any]:
    """Return the defaults of a command's flags that have one."""
    fields = dataclasses.fields(command)
    return {item.name: item.default for item in fields if item.default is not dataclasses.MISSING}


def spelled(name: str) -> str:
    """Return the flag of a field: `--eval-data` for `eval_data`."""
    return f"--{name.replace('_', '-')}"


def _value(hint: Any) -> Value:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (inner,) = (argument for argument in arguments if argument not in (type(None), bool))
        return dataclasses.replace(_value(inner), may_be_none=type(None) in arguments)
    if typing.get_origin(hint) is tuple:
        return dataclasses.replace(_value(arguments[0]), is_tuple=True)
    if typing.get_origin(hint) is typing.Literal:
        return Value(str, choices=arguments)
    return Value(hint)


def from_text(name: str, text: str, flag: Flag, value: Value) -> Any:
    """Return the value that a text on the command line stands for.

    Raises:
        InputError: it stands for none, or is out of bounds.
    """
    if value.may_be_none and text in NONE:
        return None
    makers: dict[type, Callable[[str], Any]] = {int: int, float: float, Path: local_path}
    try:
        with about(spelled(name)):
            made = makers.get(value.of, str)(text)
    except InputError:
        raise
    except ValueError:
        kind = "an integer" if value.of is int else "a number"
        raise InputError(f"{spelled(name)}: must be {kind}, not {text!r}") from None
    check_value(name, made, flag, value)
    return made


def from_json(name: str, stored: Any, flag: Flag, value: Value) -> Any:
    """Return the value that JSON holds for a flag, of the flag's own type.

    Raises:
        InputError: it is of another type, or out of bounds.
    """
    if value.is_tuple:
        if not isinstance(stored, list):
            raise InputError(f"{name} must be a list, not {stored!r}")
        return tuple(from_json(name, item, flag, dataclasses.replace(value, is_tuple=False)) for item in stored)
    if stored is None and value.may_be_none:
        return None
    is_bool = isinstance(stored, bool)
    accepted = {float: (int, float), int: (int,), bool: (bool,)}.get(value.of, (str,))
    if not isinstance(stored, accepted) or is_bool != (value.of is bool):
        raise InputError(f"{name} is of the wrong type: {stored!r}")
    made = local_path(str(stored)) if value.of is Path else value.of(stored)
    check_value(name, made, flag, value)
    return made


def from_python(name: str, given: Any, flag: Flag, value: Value) -> Any:
    """Return the value that a Python program gives for a flag, of the flag's own type.

    Integers count as floats, a path as its text, numbers of NumPy as Python's, and a dtype as its name; a single value
    stands for a tuple of it.

    Raises:
        InputError: it is of another type, or out of bounds.
    """
    if value.is_tuple:
        several = given if isinstance(given, (list, tuple)) else [given]
        one = dataclasses.replace(value, is_tuple=False)
        return tuple(from_python(name, item, flag, one) for item in several)
    if given is None and value.may_be_none:
        return None
    if isinstance(given, bool) and flag.may_stand_alone:
        return given
    made = given
    if isinstance(given, os.PathLike) and value.of in (str, Path):
        made = os.fspath(given)
    elif value.choices and not isinstance(given, str):
        made = getattr(given, "name", getattr(given, "__name__", given))
    elif hasattr(given, "item") and getattr(given, "shape", None) == ():
        made = given.item()
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), int: (int,), bool: (bool,)}
    if not isinstance(made, kinds.get(value.of, (str,))) or isinstance(made, bool) != (value.of is bool):
        expected = {float: "a number", int: "an integer", bool: "True or False"}.get(value.of, "a text")
        raise InputError(f"{spelled(name)}: must be {expected}, not {given!r}")
    with about(spelled(name)):
        typed = local_path(str(made)) if value.of is Path else value.of(made)
    check_value(name, typed, flag, value)
    return typed


def check_value(name: str, made: Any, flag: Flag, value: Value) -> None:
    """Refuse a value that is not one of the choices, or out of bounds.

    Raises:
        InputError: names the flag and what is allowed.
    """
    if value.choices and made not in value.choices:
        raise InputError(f"{spelled(name)}: must be {' or '.join(value.choices)}, not {made!r}")
    if flag.low is None or made is None:
        return
    high = math.inf if flag.high is None else flag.high
    if not (flag.low <= made <= high) or (flag.is_above and (made == flag.low or math.isinf(made))):
        raise InputError(f"{spelled(name)}: must be {_bounds(flag)}, not {made}")


def check_bounds(command: Any) -> None:
    """Refuse numbers that are out of bounds, in a command that was made in Python.

    Raises:
        InputError: the first of them.
    """
    values = values_of(type(command))
    for name, described in flags_of(type(command)).items():
        check_value(name, getattr(command, name), described, dataclasses.replace(values[name], choices=()))


def _bounds(flag: Flag) -> str:
    low, high = (None if bound is None else f"{bound:,}" for bound in (flag.low, flag.high))
    if flag.is_above:
        return f"above {low}" if high is None else f"above {low} and at most {high}"
    return f"at least {low}" if high is None else f"from {low} to {high}"
