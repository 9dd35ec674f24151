"""SIGINT and SIGTERM, noticed at once whatever the main thread is doing: computing, waiting or compiling."""

import os
import signal
import sys
import threading
from typing import Any, NoReturn

STOPPED = 75
"""Exit code of a run that a signal stopped and that --resume finishes (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within it the first signal asks the program to stop, and a second one ends it.

    A handler of Python's runs in the main thread, once that is back from whatever it has called (XLA compiles for
    minutes), and an exception from there may be swallowed by a callback that happens to run. So the handlers do
    nothing, and a thread reads the bytes that the interpreter writes for each signal.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.at_once = True
        """Nothing would be lost: the first signal ends the program, too."""

    def __enter__(self) -> "StopSignals":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # which ends the thread

    def leave(self, code: int) -> NoReturn:
        """Ends the program without waiting for threads, which may compile for minutes or hang on a lost disk."""
        _end("", code)

    def _watch(self) -> None:
        while number := os.read(self._reader, 1):
            if number[0] not in SIGNALS:
                continue
            if self.at_once:
                _end("stopped, and nothing is lost: the same command with --resume goes on", STOPPED)
            if self.requested.is_set():
                _end("stopped at once; --resume goes on from the newest checkpoint", 128 + number[0])
            self.requested.set()
            print("\nstopping after this step; once more: at once", file=sys.stderr, flush=True)
        os.close(self._reader)


def _end(message: str, code: int) -> NoReturn:
    print(message, end="\n" * bool(message), file=sys.__stdout__, flush=True)  # also where another process writes
    sys.stderr.flush()
    os._exit(code)
