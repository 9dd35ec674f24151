"""Errors that a user can mend, and how the commands say them."""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

LONGEST_LINE = 4000
"""Letters of a line of a message, at most."""

UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that move the cursor, begin a line, change colours or the direction of writing, and half characters."""


class InputError(ValueError):
    """The user's input can't be used: a message that names the cause and what to do; command lines exit with 2.

    Each argument is one line of it, mostly there is one. Names in it come from files: what could begin a line of its
    own, or steer a terminal, is written as an escape such as `\\n`.
    """

    def __init__(self, *lines: str):
        super().__init__(*(_cut(escaped(line)) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
    """Put the subject, such as `--data`, before the message of an InputError that is raised inside."""
    try:
        yield
    except InputError as error:
        first, *rest = error.args
        raise InputError(f"{subject}: {first}", *rest) from None


def escaped(text: str, keep: str = "") -> str:
    """Return a text in which escapes such as `\\x1b` stand for what steers a terminal; some may be kept."""
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def did_you_mean(word: str, known: Collection[str], *, cutoff: float = 0.7) -> str:
    """Return `: did you mean first6?` where a known word is like the given one, and nothing elsewhere."""
    close = difflib.get_close_matches(word, known, 1, cutoff)
    return f": did you mean {close[0]}?" if close else ""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that does not: that of a full disk, which comes with a write."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror:  # one of a library's own says all in its text
            error.filename = str(path)
        raise


def what_failed(error: OSError) -> str:
    """Return the file and what the operating system says of it, in one line."""
    if not error.strerror:
        return _cut(escaped(str(error)))
    name = error.filename
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    return _cut(escaped(f"{name}: {error.strerror}" if name else error.strerror))


def _cut(line: str) -> str:
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}"
