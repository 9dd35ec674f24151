"""Output of a run: to the terminal as long as there is one, and into `run.log`. A lost terminal never ends a run."""

import contextlib
import io
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from jaxgpt.convert.errors import InputError, escaped

NAME = "run.log"
"""The file in the run's folder."""

MOST_KEPT = 10**6
"""Letters that are kept until the run's folder is there, at most."""


class Log:
    """The lines of `run.log`, kept in memory until the file is opened."""

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._kept: list[str] = []
        self.path: Path | None = None
        """The file, once it is open."""

    def add(self, text: str) -> None:
        """Add what was printed; what a terminal draws over itself, such as a progress bar, is no line."""
        if "\r" in text or "\x1b" in text:
            return
        if self._file is None:
            if sum(map(len, self._kept)) < MOST_KEPT:
                self._kept.append(text)
            return
        with contextlib.suppress(OSError):  # a full disk is noticed, and said, where checkpoints are written
            self._file.write(text)
            self._file.flush()

    def open(self, path: Path) -> None:
        """Append to a file from now on, first what was kept."""
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")
            self.path = path
        kept, self._kept = self._kept, []
        self.add(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} process {os.getpid()}\n")
        for text in kept:
            self.add(text)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


class Output(io.TextIOBase):
    """A stream that goes on when nobody reads it any more."""

    def __init__(self, stream: Any, log: Log):
        self._stream, self.log = stream, log
        self._is_lost = stream is None  # as after `>&-`

    def write(self, text: str) -> int:
        self.log.add(text)
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def _try(self, act: Any) -> None:
        if self._is_lost:
            return
        try:
            act()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._is_lost = True
            self.log.add(f"(the terminal is lost: {error}; the run goes on)\n")
            with contextlib.suppress(OSError, ValueError):  # what it still holds goes nowhere
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def isatty(self) -> bool:
        return not self._is_lost and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("there is no stream")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Make standard output and error such streams, in a command of ours."""
    with logged_output() as log:
        try:
            yield
        except (InputError, OSError):
            raise
        except Exception as error:  # a fault of ours
            if log.path is not None:
                log.add(escaped(traceback.format_exc(), keep="\n"))
                error.add_note(f"what was saved stays; please report this with {log.path}")
            raise


@contextlib.contextmanager
def logged_output(*, is_quiet: bool = False) -> Iterator[Log]:
    """Make standard output and error such streams; where it is to be quiet, only the log gets standard output."""
    before, log = (sys.stdout, sys.stderr), Log()
    sys.stdout, sys.stderr = Output(None if is_quiet else before[0], log), Output(before[1], log)
    try:
        yield log
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        log.close()


def log_to(folder: Path) -> None:
    """Write what is printed into the run's log too, from its beginning on."""
    if isinstance(sys.stdout, Output):
        sys.stdout.log.open(folder / NAME)
