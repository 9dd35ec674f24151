"""Text on the terminal: lines that are wrapped between words, and a clock beside long work."""

import contextlib
import itertools
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from jaxgpt.convert.errors import escaped

QUIET_SECONDS = 2.0
"""How long work may take before a log says what it is."""

WIDEST = 120
"""Columns beyond which no text is wrapped further: longer lines are hard to read."""


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Return the columns to wrap at; None where a stream is no terminal, such as a log: lines stay whole there."""
    stream = stream or sys.stdout
    return page_width() if stream.isatty() else None


def page_width() -> int:
    """Return the columns of the terminal, or what COLUMNS says, or 80; within bounds."""
    return max(40, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))


def wrapped(text: str, width: int | None) -> str:
    """Return a text in which no line is longer than the width, and none ends inside a word.

    What follows hangs under the second column of a line such as `model       tiny: 12 blocks`.
    """
    if width is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _wrapped_line(line, width))


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a text of several lines, wrapped to the terminal; nothing in it can steer a terminal."""
    stream = stream or sys.stdout
    print(wrapped(escaped(text, keep="\n"), terminal_width(stream)), file=stream, flush=True)


def say(line: str, stream: TextIO | None = None) -> None:
    """Print one line, whatever the names in it hold."""
    show(escaped(line), stream)


def for_terminal(text: str, stream: TextIO) -> str:
    """Return a text that a model wrote for a stream: as it is, but on a terminal without what would steer that."""
    return escaped(text, keep="\n\t") if stream.isatty() else text


def table(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return rows of cells as lines, each column as wide as its widest cell.

    Where that is more than the width, the widest columns are narrowed, and their cells go on below, between words.
    """
    rows = [[escaped(cell) for cell in row] for row in rows]
    columns = [*zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    longest_word = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    gaps = 2 * (len(widths) - 1)
    while width is not None and sum(widths) + gaps > width:
        room = [widest if widest > word else 0 for widest, word in zip(widths, longest_word, strict=True)]
        if not any(room):
            break
        widths[room.index(max(room))] -= 1
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(cell, max(cut, 1), break_long_words=False, break_on_hyphens=False) or [""]
            for cell, cut in zip(row, widths, strict=True)
        ]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            padded = (part.ljust(cut) for part, cut in zip(parts, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


@contextlib.contextmanager
def busy(doing: str) -> Iterator[None]:
    """Say on standard error what is going on: by a running clock on a terminal, in a log by one line if it takes long.

    Nothing is said where standard output is closed on purpose, as in all but the first of several processes.
    """
    if getattr(sys.stdout, "name", "") == os.devnull:
        yield
        return
    done = threading.Event()
    ticking = threading.Thread(target=_tick, args=(escaped(doing), sys.stderr, done), name="clock", daemon=True)
    ticking.start()
    try:
        yield
    finally:
        done.set()
        ticking.join()


def _tick(doing: str, stream: TextIO, done: threading.Event) -> None:
    begun = time.monotonic()
    if not stream.isatty():
        if not done.wait(QUIET_SECONDS):
            print(f"{doing} …", file=stream, flush=True)
        return
    shown = False
    while not done.wait(1.0 if shown else 0.3):
        shown = True
        print(f"\r\x1b[K{doing} … {time.monotonic() - begun:.0f} s", end="", file=stream, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=stream, flush=True)


def _wrapped_line(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    columns = re.match(r"\s*\S+(?: \S+){0,3} {2,}(?=\S)", line)
    leading = len(line) - len(line.lstrip())
    hang = columns.end() if columns and columns.end() <= width // 2 else leading + 2
    return textwrap.wrap(
        line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    ) or [line]  # fmt: skip
