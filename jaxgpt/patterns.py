"""Regular expressions of users, matched within a time limit: some would go back and forth over a name for ever."""

import math
import re
import time
from collections.abc import Iterable

import regex

from jaxgpt.convert.errors import InputError

SECONDS = 1.0
"""Time to match one pattern against all names."""

LONGEST = 10_000
"""Letters of a pattern, at most."""


COUNT, MOST_WRITTEN_OUT = re.compile(r"\{([0-9]+)"), 10**6
"""The least count of a repetition, as in `.{3,5}`, so often is it compiled; and letters of a pattern that is so."""

OTHERWISE = re.compile(r"\[\[?:|\{(?![0-9]*,?[0-9]*\})")
"""Text that is letters to Python, and something else to `regex`."""


class Pattern:
    """A regular expression in Python's own syntax.

    Raises:
        InputError: it is none.
    """

    def __init__(self, text: str):
        self.text = text
        try:
            if len(text) > LONGEST:
                raise ValueError(f"it is longer than {LONGEST:,} letters")
            if found := OTHERWISE.search(text):
                raise ValueError(f"{found[0]} is not in Python's syntax of regular expressions")
            if math.prod(max(1, int(n)) for n in COUNT.findall(text)) * len(text) > MOST_WRITTEN_OUT:
                raise ValueError(f"with its repetitions written out it has more than {MOST_WRITTEN_OUT:,} letters")
            re.compile(text)  # whose syntax counts
            self._compiled = regex.compile(text)
        except (re.error, regex.error, ValueError, TypeError, RecursionError, OverflowError) as error:
            raise InputError(f"{str(text)[:60]!r} is not a regular expression ({error})") from None

    def matching(self, names: Iterable[str]) -> set[str]:
        """Return the names that it matches from their first letter to their last.

        Raises:
            InputError: it takes too long.
        """
        until = time.monotonic() + SECONDS
        try:
            return {name for name in names if self._compiled.fullmatch(name, timeout=_left(until))}
        except TimeoutError:
            raise InputError(
                f"the pattern {self.text[:60]!r} takes too long to match: write it without a repetition inside of a "
                "repetition"
            ) from None


def _left(until: float) -> float:
    return max(until - time.monotonic(), 1e-3)
