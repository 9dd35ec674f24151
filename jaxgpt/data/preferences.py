"""Records to preferences: a prompt, and the better and the worse of two answers, as TRL has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxgpt.chat import Message
from jaxgpt.convert.errors import InputError
from jaxgpt.data.conversations import filled_fields, listed, read_messages

ANSWERS = ("chosen", "rejected")
"""Fields with the answers, the better one first."""


@dataclass(frozen=True)
class Preference:
    """The two texts or conversations of a record, which begin alike."""

    pair: tuple[Any, Any]
    """Chosen, rejected: each a prompt and what follows it, or messages of which those of the answer count."""
    is_chat: bool
    unread: tuple[str, ...] = ()
    """Fields of the record that hold something, and are not read."""


def preference_of(record: Mapping[str, Any]) -> Preference:
    """Return the preference that a record holds: `prompt`, `chosen` and `rejected`, texts or lists of messages.

    Without `prompt` it is what both begin with: the same messages, or the same text up to a white space.

    Raises:
        InputError: it holds none, or both answers are the same.
    """
    answers = [record.get(name) for name in ANSWERS]
    if any(answer is None for answer in answers):
        raise InputError(f"not a preference: expected prompt, chosen and rejected, but its fields are {listed(record)}")
    unread = filled_fields(record, ("prompt", *ANSWERS))
    prompt = record.get("prompt")
    texts = [answer for answer in answers if isinstance(answer, str)]
    if len(texts) == 2:
        if prompt is None:
            prompt, texts = _split_texts(*texts)
        if not isinstance(prompt, str):
            raise InputError("prompt must be a text, as chosen and rejected are")
        if not all(texts):
            raise InputError(f"{ANSWERS[texts.index('')]} is empty")
        return _different(Preference(((prompt, texts[0]), (prompt, texts[1])), False, unread))
    if not all(isinstance(answer, (list, tuple)) for answer in answers):
        raise InputError("chosen and rejected must be two texts, or two lists of messages")
    found = [read_messages(answer, name) for answer, name in zip(answers, ANSWERS, strict=True)]
    asked = _prompt_of(prompt, found)
    for messages, name in zip(found, ANSWERS, strict=True):
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError(f"{name} has no message from the assistant")
    pair = tuple((*asked, *messages) for messages in found)
    return _different(Preference(pair, True, unread))  # type: ignore[arg-type]


def _different(found: Preference) -> Preference:
    if found.pair[0] == found.pair[1]:
        raise InputError("chosen and rejected are the same")
    return found


def _split_texts(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """Return what both texts begin with, up to a white space, and the rest of each."""
    end = n_shared(chosen, rejected)
    while end and not chosen[end - 1].isspace():
        end -= 1
    end = len(chosen[:end].rstrip())  # white space belongs to what follows it, as tokenizers have it
    return chosen[:end], [chosen[end:], rejected[end:]]


def _prompt_of(prompt: Any, answers: list[list[Message]]) -> list[Message]:
    """Return the messages that are asked, none of which counts, and take them from the answers, if they are there too.

    Without `prompt` they are what both conversations begin with.
    """
    n = n_shared(*answers)
    if prompt is None:
        asked = answers[0][:n]
    elif isinstance(prompt, str):
        asked = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, (list, tuple)):
        asked = read_messages(prompt, "prompt")
    else:
        raise InputError(f"prompt must be a text or a list of messages, not {type(prompt).__name__}")
    if answers[0][:n][: len(asked)] == asked:
        for messages in answers:
            del messages[: len(asked)]
    return [message | ({"weight": 0} if message["role"] == "assistant" else {}) for message in asked]


def n_shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return how many items two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
