"""Experiment trackers of a run, each in its own process, so that training goes on when one of them fails."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.convert.command_line.console import say
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import field, read_json
from jaxgpt.training.tracking.worker import DROPPED, TITLES

GOES_ON, LOST = "training continues", "what it had not sent is lost"
"""The end of a warning during a run, and at its end."""

CLOSE_SECONDS = 20.0
"""Seconds that the end of a run waits at most for trackers to send their last values."""

MAX_UNSENT_BYTES = 1_000_000
"""A tracker that does not read is dropped when more than these are waiting for it."""

PIECE_BYTES = 4096
"""Size of one write, which a pipe takes completely or not at all."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed."""
    missing = [name for name in names if not _installed("tensorboardX" if name == "tensorboard" else name)]
    if missing:
        raise InputError(f"--track: {missing[0]} is not installed: pip install {' '.join(missing)}")
    if "mlflow" in names and "MLFLOW_TRACKING_URI" not in os.environ and not _installed("sqlalchemy"):
        raise InputError(
            "--track: mlflow-skinny has no database of its own: pip install mlflow, or set MLFLOW_TRACKING_URI to the "
            "address of a server"
        )


class Trackers:
    """The trackers of a run; one that fails is dropped, with one line on standard error."""

    def __init__(self, names: Sequence[str], folder: Path, config: dict[str, Any], first: int):
        self._pipes: dict[str, _Pipe] = {}
        for name in dict.fromkeys(names):
            try:
                self._pipes[name] = _Pipe(name)
            except OSError as error:
                _warn(name, error)
        start = {
            "folder": str(folder.absolute()),
            "id": _stored_id(folder / "trackers.json") if names else None,
            "config": config,
            "first": first,
            "close_seconds": CLOSE_SECONDS,
        }
        self._send(start)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send the numbers of a step, without those that are None; NaN and infinity are sent too. Never waits."""
        if known := {name: float(value) for name, value in values.items() if value is not None}:
            self._send({"step": step, "values": known})

    def text(self, step: int, name: str, text: str) -> None:
        """Send a text, such as a sample. Never waits."""
        self._send({"step": step, "name": name, "text": text})

    def close(self, finished: bool) -> None:
        """Wait until everything is sent, at most `CLOSE_SECONDS`; `finished` is False if the run may be resumed."""
        deadline = time.monotonic() + CLOSE_SECONDS
        self._send({"finished": finished}, LOST)
        for name, pipe in self._pipes.items():
            if reason := pipe.close(deadline):
                _warn(name, reason, LOST)
        for name, pipe in self._pipes.items():
            if reason := pipe.wait(deadline + 2):  # it gives up by itself before that
                _warn(name, reason, LOST)
        self._pipes.clear()

    def _send(self, message: dict[str, Any], what_now: str = GOES_ON) -> None:
        line = (json.dumps(message, default=str) + "\n").encode()
        for name, pipe in list(self._pipes.items()):
            reason = pipe.send(line)
            if pipe.process.returncode is not None:
                del self._pipes[name]
            if reason:
                _warn(name, reason, what_now)


class _Pipe:
    """A tracker's process and the pipe to it, in its own session, so that Ctrl-C reaches training alone.

    The methods return the reason why the tracker is lost, or None.
    """

    def __init__(self, name: str):
        path = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxgpt.training.tracking.worker", name],
            stdin=subprocess.PIPE, stdout=2, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        )  # fmt: skip
        assert self.process.stdin
        self._input, self._unsent = self.process.stdin, b""
        os.set_blocking(self._input.fileno(), False)

    def send(self, line: bytes = b"") -> str | None:
        """Send a line without blocking; the process reads all the time, also while its server does not answer."""
        self._unsent += line
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._input.fileno(), self._unsent[:PIECE_BYTES]) :]
        except BlockingIOError:
            return self._kill("its process takes no more lines") if len(self._unsent) > MAX_UNSENT_BYTES else None
        except OSError as error:
            self._unsent = b""
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)  # its end of the pipe is closed: it is about to exit
            return self._kill(str(error))
        return None

    def close(self, deadline: float) -> str | None:
        """Send what is left and close the pipe."""
        reason = None
        while self._unsent and not reason and time.monotonic() < deadline:
            time.sleep(0.02)
            reason = self.send()
        self._input.close()
        return reason

    def wait(self, deadline: float) -> str | None:
        """Wait for the process to exit, and kill it after the deadline."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        return self._kill("its process hung")

    def _kill(self, reason: str) -> str | None:
        """Kill the process and its children; return the reason, unless it exited well or with its own warning."""
        code = self.process.poll()
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._input.close()
        self.process.wait()
        if code in (0, DROPPED):
            return None
        return reason if code is None else f"its process ended with {code}"


def _stored_id(path: Path) -> str:
    """Return the id of this run for trackers, which stays the same after a resume."""
    with contextlib.suppress(InputError):
        if re.fullmatch(r"[0-9a-f]{16}", stored := field(read_json(path), "id", str)):
            return stored
    new, temporary = uuid.uuid4().hex[:16], path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps({"id": new}) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        says = (
            f"the trackers' run id could not be saved to {path}: {error}; after a resume, trackers will show a new run"
        )
        say(f"train: warning: {says}", sys.stderr)
    return new


def _installed(package: str) -> bool:
    """Tell whether a package can be imported; a mere folder of its name, which W&B leaves behind, can't."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _warn(name: str, reason: object, what_now: str = GOES_ON) -> None:
    says = f"logging to {TITLES[name]} has stopped: {reason}; {what_now}"
    say(f"train: warning: {says}", sys.stderr)
