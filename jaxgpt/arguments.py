"""What callers pass: numbers in their bounds, and ids that are tokens."""

import operator
from typing import Any

from jaxgpt.convert.errors import InputError


def integer(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """A whole number from `low` to `high`, or an InputError that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, not {value!r}") from None
    if not low <= number <= high:
        raise InputError(f"{name} must be from {low} to {high}, not {number}")
    return number


def real(name: str, value: Any, low: float, high: float) -> float:
    """A number from `low` to `high`, or an InputError that names it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, not {value!r}") from None
    if not low <= number <= high:
        raise InputError(f"{name} must be from {low:g} to {high:g}, not {number:g}")
    return number


def check_ids(low: Any, high: Any, n_tokens: int, name: str = "ids") -> None:
    """Refuses ids, of which these are the lowest and the highest, that are no token of a model's."""
    if not 0 <= low <= high < n_tokens:
        raise InputError(f"{name} reach from {low} to {high}; the model has {n_tokens} tokens")
