"""The process in which chat templates run: programs of strangers, in a sandbox, with little time and memory.

It reads requests from standard input and answers on standard output, until its input ends. Each is a length of eight
bytes and so many more: a pickle from our own process, and as an answer JSON and then the texts.
"""

import contextlib
import json
import os
import pickle
import resource
import signal
import struct
import sys
from typing import Any

MEMORY = 512 * 2**20
"""Bytes that a template may take, beside what the process has when it starts."""

SECONDS, SECONDS_PER_MILLION = 2.0, 1.0
"""Seconds of processor time for one conversation, and for each million characters in it."""

MOST_WRITTEN, GROWTH = 2**20, 16
"""Characters that a template may write, and for each character of the conversation."""


def main() -> None:
    """Answer requests."""
    ours, theirs = sys.stdin.buffer, os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # packages may print
    with open(theirs, "wb", buffering=2**20) as answers:
        from transformers.utils.chat_template_utils import render_jinja_template

        limit_resources()
        while len(head := ours.read(8)) == 8:
            request = pickle.loads(ours.read(struct.unpack("<Q", head)[0]))
            for answer in (_answer(render_jinja_template, request, item) for item in request["items"]):
                kind, text, indices = answer
                data = text.encode("utf-8", "surrogatepass")
                line = json.dumps([kind, len(data), indices]).encode()
                answers.write(struct.pack("<QQ", len(line), len(data)) + line + data)
            answers.flush()


def limit_resources() -> None:
    """Limit this process: the memory, and what it could leave behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # where a system has no /proc or does not limit this
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def _answer(render: Any, request: dict[str, Any], item: dict[str, Any]) -> tuple[str, str, Any]:
    """Return `text`, `error` or `limit`, the text or message, and where the template marks what the assistant says.

    Of the time a timer takes care, which ends the process.
    """
    n_letters = item["letters"]
    signal.setitimer(signal.ITIMER_PROF, SECONDS + SECONDS_PER_MILLION * n_letters / 10**6)
    try:
        texts, indices = render(
            conversations=[item["chat"]], tools=item["tools"], chat_template=request["template"],
            return_assistant_tokens_mask=request["marks"], add_generation_prompt=item["answer"],
            continue_final_message=item["continues"], **request["variables"],
        )  # fmt: skip
        most = MOST_WRITTEN + GROWTH * n_letters
        if len(texts[0]) > most:
            return "limit", f"writes more than {most:,} characters", None
        return "text", texts[0], indices[0] if request["marks"] else None
    except MemoryError:
        return "limit", f"takes more than {MEMORY // 2**20} MB of memory", None
    except RecursionError:
        return "error", "RecursionError: nested too deeply", None
    except Exception as error:
        return "error", f"{type(error).__name__}: {str(error)[:300]}", None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
