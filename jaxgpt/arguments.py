"""Checks of what callers pass: numbers in their bounds, and ids that are tokens."""

import operator
from typing import Any, Protocol

import jax
import numpy as np

from jaxgpt.convert.errors import InputError

PART = 2**24
"""Token ids of a long sequence that are looked at together."""


class TokenIds(Protocol):
    """A sequence of token ids that is looked at in parts: an array, or a file that is read."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def integer(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """Return a whole number from `low` to `high`; raise an InputError that names it if it is not one."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer, not {value!r}") from None
    if not low <= number <= high:
        raise InputError(f"{name} must be from {low} to {high}, not {number}")
    return number


def real(name: str, value: Any, low: float, high: float) -> float:
    """Return a number from `low` to `high`; raise an InputError that names it if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, not {value!r}") from None
    if not low <= number <= high:
        raise InputError(f"{name} must be from {low:g} to {high:g}, not {number:g}")
    return number


def check_ids(ids: Any, n_tokens: int, name: str = "ids", hint: str = "") -> None:
    """Refuse token ids that the model does not have: below 0, or from `n_tokens` on.

    JAX raises no error for such an id, and its logits are NaN. Two kinds of arrays pass unseen: a tracer, whose values
    are unknown while a function is traced, and an array of which other processes hold a part.

    Args:
        ids: an array, or a list of numbers.
        name: what the message calls them.
        hint: what the message ends with.
    """
    if isinstance(ids, jax.core.Tracer) or (isinstance(ids, jax.Array) and not ids.is_fully_addressable):
        return
    ids = np.asarray(ids)
    if not ids.size:
        return
    low, high = ids.min(), ids.max()
    if not 0 <= low <= high < n_tokens:
        raise InputError(f"{name} must be from 0 to {n_tokens - 1}, but range from {low} to {high}{hint}")


def check_stream(ids: TokenIds, n_tokens: int, name: str = "ids", hint: str = "") -> None:
    """Refuse token ids as `check_ids` does, of a sequence that may be a file larger than memory: part by part."""
    for begin in range(0, len(ids), PART):
        check_ids(ids[begin : begin + PART], n_tokens, name, hint)
