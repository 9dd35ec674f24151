"""JSON that others wrote: one reader, which bounds what it costs, and says of what type each field must be."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

from jaxgpt.convert.errors import InputError

T = TypeVar("T")

MAX_BYTES = 64 * 10**6
"""Bytes of a file, at most."""

MAX_VALUES = 2_000_000
"""Values of a text, at most; each takes some hundred bytes in memory, however short it is written."""

MAX_DEPTH = 100
"""Objects and arrays in each other, at most: Python could read more, and fail where they are written again."""


TOO_DEEP = "not JSON that can be read: nested too deeply"


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object, in which no name appears twice.

    Raises:
        InputError: it can't be read, is no such file, or costs too much.
    """
    try:
        found = parse_json(read_file(path, max_bytes), has_unique_names=True)
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: {reason}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a JSON object")
    return found


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file to its end.

    Raises:
        InputError: it is too large, or no regular file.
        OSError: it can't be read.
    """
    with open_file(path) as file:
        found = file.read(max_bytes + 1)
    if len(found) > max_bytes:
        raise InputError(f"more than {max_bytes / 10**6:g} MB, which is too much for such a file")
    return found


def open_file(path: Path) -> BinaryIO:
    """Open a regular file; anything else, such as a pipe, might never have an end.

    Raises:
        InputError: it is no regular file, or its name can't be one.
        OSError: it can't be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte in the path
        raise InputError(str(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("not a regular file")
    return os.fdopen(descriptor, "rb")


def parse_json(
    text: str | bytes,
    *,
    has_unique_names: bool = False,
    has_nan: bool = True,
    max_values: int = MAX_VALUES,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """Return what a text of JSON stands for.

    Args:
        has_unique_names: refuse an object that has a name twice; otherwise the last one counts.
        has_nan: accept NaN and Infinity, which Python writes, and which JSON does not have.
        max_values: refuse more values than these.
        max_depth: refuse objects and arrays that are nested deeper.

    Raises:
        InputError: it is not JSON, or is out of these bounds.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        n_inner = check_n_values(text, max_values)
        found = json.loads(
            text,
            object_pairs_hook=_without_duplicates if has_unique_names else None,
            parse_constant=None if has_nan else _no_constant,
        )
    except RecursionError:
        raise InputError(TOO_DEEP) from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"not JSON: {cause_of(error)}") from None
    if n_inner > max_depth and is_nested_deep(found, max_depth):
        raise InputError(TOO_DEEP)
    return found


def parse_next(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value that begins at a position of a text, and where it ends; NaN is refused.

    Raises:
        InputError: it is nested too deeply.
        ValueError: it is not JSON, or not all of it is there yet.
    """
    try:
        found, end = _DECODER.raw_decode(text, at)
    except RecursionError:
        raise InputError(TOO_DEEP) from None
    if text.count("[", at, end) + text.count("{", at, end) > MAX_DEPTH and is_nested_deep(found):
        raise InputError(TOO_DEEP)
    return found, end


def check_n_values(text: str, max_values: int = MAX_VALUES) -> int:
    """Refuse a text of JSON that holds too many values; return how many objects and arrays it has, at most.

    Raises:
        InputError: it does, where what is in strings is counted too.
    """
    n_inner = text.count("[") + text.count("{")
    if n_inner + text.count(",") > max_values:
        raise InputError(f"not JSON that can be read: it holds more than {max_values:,} values")
    return n_inner


def field(fields: Any, name: str, kind: type[T], default: T | None = None) -> T:
    """Return a field of a JSON object, of one type; a number must be finite, and an integer have 64 bits.

    Raises:
        InputError: it is missing and has no default, or is of another type.
    """
    value = fields.get(name, default) if isinstance(fields, Mapping) else None
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted or (kind in (int, float) and not -LARGEST[kind] < value < LARGEST[kind]):
        shown = type(value).__name__ if isinstance(value, (dict, list)) else repr(value)[:60]
        raise InputError(f"{name} must be {NOUNS[kind]}, not {shown}")
    return cast(Any, kind)(value)


LARGEST: dict[type, Any] = {int: 2**63, float: float("inf")}
NOUNS: dict[type, str] = {
    int: "an integer", float: "a finite number", str: "a text", bool: "true or false", dict: "an object",
    list: "a list",
}  # fmt: skip
"""Bounds of numbers, which NaN is not within, and types as messages name them."""


def is_nested_deep(value: Any, n_most: int = MAX_DEPTH) -> bool:
    """Tell whether objects and arrays are nested deeper than that."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(n_most):
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(fields := dict(pairs)) != len(pairs):
        raise ValueError("a name appears twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def cause_of(error: ValueError, begin: int = 0) -> str:
    """Return why a text is not JSON, and where, counted from its beginning."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at its character {error.pos - begin + 1:,}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: byte {error.object[error.start]:#x} at {error.start:,}"
    return str(error).splitlines()[0]


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
