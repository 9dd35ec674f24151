"""Conversations: from a record of a file to token ids, and which of them the assistant said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxgpt.convert.errors import InputError
from jaxgpt.tokenizer import add_tokens

Message = dict[str, str]
"""`{"role": "user", "content": "Hello"}`; roles are system, user and assistant."""

ROLE_TOKENS = ("<|user|>", "<|assistant|>")
"""Tokens that `CHAT_TEMPLATE` needs beside the end of text."""

CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='') -%}{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.system = ns.system + message['content'] + '\n\n' -%}"
    "{%- elif message['role'] == 'user' -%}{{ '<|user|> ' + ns.system + message['content'] + ' ' }}"
    "{%- set ns.system = '' -%}"
    "{%- else -%}{{ '<|assistant|> ' + message['content'] + eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""`<|user|> … <|assistant|> …<|endoftext|>`; what a system message says begins the user's next one."""

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Roles by the names that data sets have for them."""

QUESTIONS, ANSWERS = ("instruction", "prompt", "question"), ("output", "response", "completion", "answer")
"""Fields of records with one exchange."""


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens."""

    ids: list[int]
    """All of it, as the tokenizer's template writes it."""
    counts: list[bool]
    """For each token whether the assistant said it; its end token counts too."""
    turns: list[int]
    """Lengths at which it may be cut: after each thing that the assistant said."""


def messages_of(record: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the conversation that a record holds.

    It is in `messages` (role, content), in `conversations` (from, value), or one exchange such as `instruction`,
    `input` and `output`.

    Raises:
        InputError: it holds none, or one in which the assistant says nothing.
    """
    for field, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if (listed := record.get(field)) is not None:
            if not isinstance(listed, (list, tuple)):
                raise InputError(f"{field} must be a list, not {type(listed).__name__}")
            messages = tuple(_message(item, role, content) for item in listed)
            break
    else:
        question = next((name for name in QUESTIONS if record.get(name) is not None), None)
        answer = next((name for name in ANSWERS if record.get(name) is not None), None)
        if question is None or answer is None:
            fields = ", ".join(sorted(map(repr, record))[:8]) or "none"
            raise InputError(
                "neither a text nor a conversation: expected text, or messages, or conversations, or instruction and "
                f"output, but its fields are {fields}"
            )
        asked = "\n\n".join(text for name in (question, "input") if (text := _text(record.get(name) or "", name)))
        messages = (
            {"role": "user", "content": asked},
            {"role": "assistant", "content": _text(record[answer], answer)},
        )
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("the conversation has no message from the assistant")
    return messages


def _message(item: Any, role: str, content: str) -> Message:
    if not isinstance(item, Mapping):
        raise InputError(f"a message must be an object with {role} and {content}, not {type(item).__name__}")
    name = item.get(role)
    if not isinstance(name, str) or name not in ROLES:
        raise InputError(f"the {role} of a message must be system, user or assistant, not {name!r}")
    return {"role": ROLES[name], "content": _text(item.get(content), content)}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} must be a text, not {type(value).__name__}")
    return value


def prepare_chat(tokenizer: Any) -> tuple[str, ...]:
    """Give a tokenizer that has no chat template the one above, and return the tokens that are new to it.

    Raises:
        InputError: it has no end-of-text token, or does not give its tokens' positions in the text.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "conversations need a tokenizer with a tokenizer.json, which gives each token's position in the text"
        )
    if tokenizer.chat_template is not None:
        return ()
    if tokenizer.eos_token is None:
        raise InputError("conversations need a tokenizer with an end-of-text token (eos_token)")
    added = add_tokens(tokenizer, ROLE_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return added


def render(tokenizer: Any, messages: Sequence[Message], *, answer: bool = False) -> str:
    """Return the text of a conversation by the tokenizer's template.

    With `answer` it ends where the assistant's next message begins.
    """
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # a template is a program of somebody else's, in a sandbox
        raise InputError(f"the tokenizer's chat template fails ({type(error).__name__}: {error})") from None


def encode_chats(tokenizer: Any, chats: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Encode conversations.

    Each is tokenised as a whole; a token counts if it begins within what the template writes for an assistant's message
    after the words that ask for one.

    Raises:
        InputError: the template renders a turn differently once others follow, so that the turn can't be located.
    """
    texts, spans = zip(*(_spans(tokenizer, chat) for chat in chats), strict=True)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = []
    for ids, offsets, of in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
        starts = [start for start, _ in offsets]
        counts = [any(begin <= start < end for begin, end, _ in of) for start in starts]
        turns = [sum(start < after for start in starts) for _, _, after in of]
        found.append(Encoded(ids, counts, turns))
    return found


def _spans(tokenizer: Any, chat: Sequence[Message]) -> tuple[str, list[tuple[int, int, int]]]:
    """Return the text of a conversation, and for each of the assistant's messages (begin, end, end of its turn)."""
    whole, spans = render(tokenizer, chat), []
    for i, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        asked, said = render(tokenizer, chat[:i], answer=True) if i else "", render(tokenizer, chat[: i + 1])
        if not (whole.startswith(said) and said.startswith(asked)):
            raise InputError(
                "the chat template renders a turn differently once others follow, so that the assistant's tokens can't "
                "be located"
            )
        answer = said[len(asked) :].rstrip()  # no white space after its end token
        end = len(asked) + len(answer) if answer.endswith(tokenizer.eos_token or "\0") else len(said)
        spans.append((len(asked), end, len(said)))
    return whole, spans
