"""Signals that ask a run to stop, noticed at once whatever the main thread does: computing, waiting or compiling."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any, NoReturn

from jaxgpt.convert.errors import escaped
from jaxgpt.convert.exit_codes import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1)
"""Ctrl-C, a cloud's or a batch system's notice, a terminal that is gone, a limit of CPU time, and Slurm's warning."""


def heeded() -> tuple[signal.Signals, ...]:
    """Return the signals that are not ignored, as `nohup` ignores SIGHUP."""
    return tuple(number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN)


class Stop:
    """A request to stop a run, and how the program ends by it."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.exits_at_once = True
        """True while nothing would be lost: the first signal ends the program too."""
        self.go_on = ""
        """The command that goes on with the run; empty while nothing is written."""

    def ask(self, is_wanted: Any) -> None:
        """Stop after the step that is under way, if a callback returned True."""
        if is_wanted is True:
            self.requested.set()

    def leave(self, code: int) -> None:
        """End the program, if it is ours, where threads may go on for minutes; a program of Python's goes on."""


class Interrupts(Stop):
    """In a program of the user's the first Ctrl-C asks the run to stop, and a second one is a KeyboardInterrupt.

    Other signals, and other threads than the main one, are the user's own.
    """

    def __enter__(self) -> "Interrupts":
        self._is_heard = threading.current_thread() is threading.main_thread()
        if self._is_heard:
            self._old_handler = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._is_heard:
            signal.signal(signal.SIGINT, self._old_handler or signal.SIG_DFL)  # None: a handler written in C

    def _hear(self, *_: Any) -> None:
        if self.exits_at_once or self.requested.is_set():
            raise KeyboardInterrupt
        self.requested.set()
        print("\nstopping after this step; interrupt again to stop at once", file=sys.stderr, flush=True)


class StopSignals(Stop):
    """Within it the first signal asks the program to stop, and a second one ends it.

    A handler of Python's runs in the main thread, once that is back from whatever it has called (XLA compiles for
    minutes), and an exception from there may be swallowed by a callback that happens to run. So the handlers do
    nothing, and a thread reads the bytes that the interpreter writes for each signal.
    """

    def __enter__(self) -> "StopSignals":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in heeded()}
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # which ends the thread

    def leave(self, code: int) -> NoReturn:
        """End the program without waiting for threads, which may compile for minutes or hang on a lost disk."""
        _end("", code)

    def _nothing_is_lost(self) -> str:
        if not self.go_on:
            return "stopped before the first step; nothing was written"
        return f"stopped, and nothing is lost; to resume: {self.go_on}"

    def _watch(self) -> None:
        while number := os.read(self._reader, 1):
            if number[0] not in SIGNALS:
                continue
            if self.exits_at_once:
                _end(self._nothing_is_lost(), ExitCode.STOPPED)
            if self.requested.is_set():
                _end(f"stopped at once; to resume from the newest checkpoint: {self.go_on}", 128 + number[0])
            self.requested.set()
            with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)
        os.close(self._reader)


def _end(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the terminal may be gone
        if message:
            print(escaped(message), file=sys.__stdout__, flush=True)  # also where another process writes
        sys.stderr.flush()
    os._exit(code)
