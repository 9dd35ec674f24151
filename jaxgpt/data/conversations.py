"""Records to conversations: in which fields data sets keep messages, and under which names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxgpt.chat import OPTIONAL_FIELDS, Message, is_trained_on
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import parse_json

LISTS = ("messages", "conversations", "conversation")
"""Fields that hold a list of messages."""

QUESTIONS, ANSWERS = ("instruction", "prompt", "question"), ("output", "response", "completion", "answer")
"""Fields of records with one exchange: a text, or as TRL has them a list of messages."""

MATERIAL = ("input", "context")
"""Fields of an exchange whose text follows the question."""

SYSTEMS = ("system", "system_prompt")
"""Fields whose text is the system message."""

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
}
"""Roles by the names that data sets have for them."""

WEIGHTS = ("weight", "train", "training")
"""Fields of a message that say whether it is trained on: OpenAI's, and Axolotl's."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a content that hold text."""


@dataclass(frozen=True)
class Conversation:
    """The conversation that a record holds."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    """The tools that the assistant may call, as JSON schemas."""
    unread: tuple[str, ...] = ()
    """Fields of the record and of its messages that hold something, and are not read."""


def conversation_of(record: Mapping[str, Any]) -> Conversation:
    """Return the conversation that a record holds.

    It is in `messages`, `conversations` or `conversation` (role and content, or from and value), or is one exchange
    such as `instruction`, `input` and `output`, or `prompt` and `completion`. `system` and `history` come first.

    Raises:
        InputError: it holds none, or one in which no message of the assistant is trained on.
    """
    lists = [name for name in LISTS if record.get(name) is not None]
    if lists:
        field = next((name for name in lists if is_filled(record[name])), lists[0])
        messages, read = read_messages(record[field], field), {field}
    else:
        messages, read = _exchange(record)
    n_leading = 1 if messages and messages[0]["role"] in ("system", "developer") else 0
    leading, rest = messages[:n_leading], messages[n_leading:]
    if (system := next((name for name in SYSTEMS if is_filled(record.get(name))), None)) is not None:
        message = {"role": "system", "content": _text(record[system], system)}
        if leading not in ([], [message]):
            raise InputError(f"the field {system} and the first message are two different system messages")
        leading, read = [message], {*read, system}
    messages = [*leading, *_history(record), *rest]
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("the conversation has no message from the assistant")
    if not any(is_trained_on(message) for message in messages):
        raise InputError("no message of the assistant is trained on: each has weight 0 or belongs to the prompt")
    unread = filled_fields(record, read | {"history", "tools"})
    for name in (*LISTS, *QUESTIONS, *ANSWERS, "history"):
        if name in read | {"history"} and isinstance(record.get(name), (list, tuple)):
            unread += _unread_in_messages(record[name], name)
    return Conversation(tuple(messages), _tools(record.get("tools")), unread)


def is_filled(value: Any) -> bool:
    """Return whether a field holds anything: tables have null, or nothing, where a record has no such field."""
    return value is not None and not (isinstance(value, (str, list, tuple, Mapping)) and not value)


def filled_fields(record: Mapping[str, Any], read: Iterable[str]) -> tuple[str, ...]:
    """Return the fields that hold something, without those that are read."""
    return tuple(name for name, value in record.items() if name not in read and is_filled(value))


def listed(names: Iterable[str]) -> str:
    """Return the first names in quotes, for a message."""
    return ", ".join(f"{name[:60]!r}" for name in sorted(map(str, names))[:8]) or "none"


def _exchange(record: Mapping[str, Any]) -> tuple[list[Message], set[str]]:
    """Return the messages of a record with one exchange, and the fields that they are from."""
    question = next((name for name in QUESTIONS if record.get(name) is not None), None)
    answer = next((name for name in ANSWERS if record.get(name) is not None), None)
    if question is None or answer is None:
        if "text" in record:
            raise InputError("text is null: expected a string")
        raise InputError(
            "neither a text nor a conversation: expected a field named text, messages or conversations, or two named "
            f"instruction and output; its fields are {listed(record)}. If another field has "
            "the text, name it with text_field=NAME"
        )
    read = {question, answer}
    if isinstance(record[question], (list, tuple)):  # what is said in a prompt is not trained on
        asked = [
            message | ({"weight": 0} if message["role"] == "assistant" else {})
            for message in read_messages(record[question], question)
        ]
    else:
        texts = [_text(record[question], question)]
        for name in MATERIAL:
            texts.append(_text(record.get(name) or "", name))
            read.add(name)
        asked = [{"role": "user", "content": "\n\n".join(filter(None, texts))}]
    if isinstance(record[answer], (list, tuple)):
        return asked + read_messages(record[answer], answer), read
    return [*asked, {"role": "assistant", "content": _text(record[answer], answer)}], read


def _history(record: Mapping[str, Any]) -> list[Message]:
    """Return the earlier messages that a record has in `history`: pairs of a question and its answer, or messages."""
    history = record.get("history")
    if not is_filled(history):
        return []
    if not isinstance(history, (list, tuple)):
        raise InputError(f"history must be a list of pairs, not {type(history).__name__}")
    messages: list[Message] = []
    for pair in history:
        if isinstance(pair, Mapping):
            messages.append(_message(pair))
            continue
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InputError("history must be a list of pairs: each a question and its answer")
        messages += [
            {"role": role, "content": _text(text, "history")}
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return messages


def read_messages(value: Any, field: str) -> list[Message]:
    """Return a list of messages with the names that chat templates have.

    Raises:
        InputError: it is no such list.
    """
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{field} must be a list, not {type(value).__name__}")
    return [_message(item, field) for item in value]


def _message(item: Any, field: str = "history") -> Message:
    """Return a message with the names that chat templates have for its fields; `weight` is 0 or absent."""
    if not isinstance(item, Mapping):
        names = "from and value" if field == "conversations" else "role and content"
        raise InputError(f"a message must be an object with {names}, not {type(item).__name__}")
    role, content = _names(item)
    name = item.get(role)
    if not isinstance(name, str) or name not in ROLES:
        raise InputError(
            f"the {role} of a message must be system, user or assistant, or developer or tool if the chat template "
            f"has it, not {_short(name)}"
        )
    message: Message = {"role": ROLES[name]}
    optional = {name: item[name] for name in OPTIONAL_FIELDS if is_filled(item.get(name))}
    if item.get(content) is not None or "tool_calls" not in optional:
        message["content"] = _content(item.get(content), content)
    calls = optional.get("tool_calls", [])
    if not isinstance(calls, (list, tuple)) or not all(isinstance(call, Mapping) for call in calls):
        raise InputError("tool_calls must be a list of objects")
    message |= optional
    return message if _weight(item) else message | {"weight": 0}


def _names(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return the fields of a message that hold its role and its content."""
    return ("from", "value") if item.get("role") is None and "from" in item else ("role", "content")


def _unread_in_messages(items: Iterable[Any], field: str) -> tuple[str, ...]:
    """Return the fields of messages, and of the parts of their contents, that hold something and are not read."""
    found: dict[str, None] = {}
    for item in items:
        if not isinstance(item, Mapping):
            continue
        names = _names(item)
        found |= dict.fromkeys(filled_fields(item, (*names, *OPTIONAL_FIELDS, *WEIGHTS)))
        content = item.get(names[1])
        for part in content if isinstance(content, (list, tuple)) else ():
            found |= dict.fromkeys(f"{names[1]}.{name}" for name in filled_fields(part, ("type", "text")))
    return tuple(f"{field}.{name}" for name in found)


def _weight(item: Mapping[str, Any]) -> bool:
    given = {name: item[name] for name in WEIGHTS if item.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise InputError(f"the {name} of a message must be 0 or 1, not {_short(value)}")
    return all(given.values())


def _content(value: Any, name: str) -> str:
    """Return the text of a content, which may come in parts.

    Raises:
        InputError: a part is not text.
    """
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(part, Mapping) for part in value):
        return _text(value, name)
    for part in value:
        if part.get("type") not in TEXT_PARTS:
            raise InputError(f"{name} has a part of the type {_short(part.get('type'))}; only text can be read")
    return "".join(_text(part.get("text"), f"the text of a part of {name}") for part in value)


def _tools(value: Any) -> tuple[Any, ...]:
    """Return tools, which data sets also keep as a text of JSON."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except InputError:
            raise InputError("tools is a string, but not valid JSON") from None
    if not is_filled(value) or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in value):
        raise InputError("tools must be a list of objects")
    return tuple(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} must be a text, not {type(value).__name__}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
