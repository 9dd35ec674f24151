"""Errors that a user can mend, and how the commands say them."""

import contextlib
import difflib
from collections.abc import Collection, Iterator
from pathlib import Path


class InputError(ValueError):
    """The user's input can't be used: one message that names the cause and what to do; command lines exit with 2."""


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
    """Put the subject, such as `--data`, before the message of an InputError that is raised inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{subject}: {error}") from None


def did_you_mean(word: str, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """Return `: did you mean first6?` where a known word is like the given one, and nothing elsewhere."""
    close = difflib.get_close_matches(word, known, 1, cutoff)
    return f": did you mean {close[0]}?" if close else ""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that does not: that of a full disk, which comes with a write."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def what_failed(error: OSError) -> str:
    """Return the file and what the operating system says of it."""
    if not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
