"""Chat templates: what a tokenizer's template writes for conversations, run in a process that has limits."""

import atexit
import contextlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.chat_template_worker import SECONDS
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import parse_json

PATIENCE = 120.0
"""Seconds to wait for an answer, however busy the processor is; the limit of a template's own time is lower."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A conversation to write."""

    chat: Sequence[Message]
    tools: Sequence[Any] = ()
    answer: bool = False
    """True to end where the assistant's next message begins."""
    continues: bool = False
    """True to end with the last message's content, so that it can be gone on with."""


@dataclass(frozen=True)
class Written:
    """A text that a template wrote."""

    text: str
    marks: tuple[tuple[int, int], ...] = ()
    """Where it marks what the assistant says: (begin, end) in the text."""


def template_of(tokenizer: Any, tools: Sequence[Any] = ()) -> str:
    """Return the template of a tokenizer, which may have another one for tools.

    Raises:
        InputError: it has none.
    """
    try:
        return tokenizer.get_chat_template(tools=list(tools) or None)
    except ValueError as error:
        raise InputError(f"the tokenizer's chat template fails ({type(error).__name__}: {error})") from None


def write_chats(tokenizer: Any, requests: Sequence[Request], *, marks: bool = False) -> list[Written | InputError]:
    """Return what the tokenizer's template writes for each conversation, or why it fails.

    Args:
        marks: say where the template marks what the assistant says, too.

    Raises:
        InputError: the template takes too much time or memory.
    """
    found: dict[int, Written | InputError] = {}
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(template_of(tokenizer, request.tools), []).append(i)
    for template, places in groups.items():
        asked = {"template": template, "variables": dict(tokenizer.special_tokens_map), "marks": marks}
        answers = _PROCESS.ask(asked, [requests[i] for i in places])
        found |= dict(zip(places, answers, strict=True))
    return [found[i] for i in range(len(requests))]


def start() -> None:
    """Start the process, so that it is there when it is needed."""
    _PROCESS.start()


class _Ended(Exception):
    """The process gives no answer."""


class _Process:
    """The process of the templates, which is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None
        self._pid = 0
        """Our own process when the child was started: a fork of ours does not share it."""
        self._unread = bytearray()
        self._refused: dict[str, str] = {}
        """Why a template is not run again."""

    def start(self) -> None:
        """Start it, if it is not there."""
        with self._lock:
            self._start()

    def ask(self, asked: Mapping[str, Any], requests: Sequence[Request]) -> list[Written | InputError]:
        """Return the answers.

        Raises:
            InputError: the template takes too much.
        """
        with self._lock:
            try:
                if (reason := self._refused.get(asked["template"])) is None:
                    return list(self._answers(asked, requests))
            except _Ended as error:
                reason = str(error)
                self._refused[asked["template"]] = reason
                self.close()
            except BaseException:  # such as Ctrl-C in the middle of an answer
                self.close()
                raise
        raise InputError(f"the tokenizer's chat template {reason}")

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None and self._pid == os.getpid():
            child.kill()
            for stream in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
            child.wait()

    def _start(self) -> subprocess.Popen:
        if self._child is None or self._pid != os.getpid():
            path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            self._pid, self._unread = os.getpid(), bytearray()
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "jaxgpt.chat_template_worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            )  # fmt: skip
            atexit.register(self.close)
        return self._child

    def _answers(self, asked: Mapping[str, Any], requests: Sequence[Request]) -> Iterator[Written | InputError]:
        data = _pickled(dict(asked), requests)
        if isinstance(data, InputError):
            yield from [data] * len(requests)
            return
        child = self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(struct.pack("<Q", len(data)) + data)
            child.stdin.flush()
        except BrokenPipeError:
            raise _Ended(self._why(child)) from None
        for _ in requests:
            n_line, n_text = struct.unpack("<QQ", self._read(child, 16))
            kind, _, marks = parse_json(self._read(child, n_line), max_values=10**8)
            text = self._read(child, n_text)
            if kind == "limit":
                raise _Ended(text.decode())
            yield _answer(kind, text, marks)

    def _read(self, child: subprocess.Popen, n: int) -> bytes:
        """Read so many bytes of an answer."""
        assert child.stdout is not None
        until = time.monotonic() + PATIENCE
        while len(self._unread) < n:
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise _Ended(f"gives no answer within {PATIENCE:.0f} s")
            part = os.read(child.stdout.fileno(), 2**20)
            if not part:
                raise _Ended(self._why(child))
            self._unread += part
        found = bytes(self._unread[:n])
        del self._unread[:n]
        return found

    def _why(self, child: subprocess.Popen) -> str:
        """Return why the process has ended."""
        code = child.wait()
        if code == -signal.SIGPROF:
            return f"takes more than {SECONDS:g} s of processor time for one conversation"
        if code < 0:
            return f"takes too much memory: its process ended by {signal.Signals(-code).name}"
        return f"can't be run: its process ended with {code}"


_PROCESS = _Process()


def _answer(kind: str, text: bytes, marks: Any) -> Written | InputError:
    if kind == "error":
        return InputError(f"the tokenizer's chat template fails ({text.decode('utf-8', 'replace')})")
    try:
        return Written(text.decode(), tuple((int(begin), int(end)) for begin, end in marks or ()))
    except UnicodeDecodeError:
        return InputError("the tokenizer's chat template writes an unpaired surrogate")


def _pickled(asked: dict[str, Any], requests: Sequence[Request]) -> bytes | InputError:
    """Return a request as bytes; a message that is in several conversations is in it once."""
    try:
        known: dict[int, tuple[Message, int]] = {}
        for message in (message for request in requests for message in request.chat):
            if id(message) not in known:
                shown = {name: value for name, value in message.items() if name != "weight" and value is not None}
                known[id(message)] = shown, len(pickle.dumps(shown))
        items = []
        for request in requests:
            chat = [known[id(message)] for message in request.chat]
            n_letters = sum(size for _, size in chat) + len(pickle.dumps(request.tools))
            items.append({
                "chat": [shown for shown, _ in chat], "tools": list(request.tools) or None, "answer": request.answer,
                "continues": request.continues, "letters": n_letters,
            })  # fmt: skip
        return pickle.dumps(asked | {"items": items})
    except RecursionError:
        return InputError("the tokenizer's chat template fails (RecursionError: nested too deeply)")
