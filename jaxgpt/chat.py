"""Conversations: from messages to token ids, and which of them the assistant said."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxgpt.convert.errors import InputError
from jaxgpt.tokenizer import add_tokens

Message = dict[str, Any]
"""`{"role": "user", "content": "Hello"}`; `weight` is 0 where the loss does not count what the assistant says."""

OPTIONAL_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")
"""Other fields of a message that chat templates may know."""

PLAIN_ROLES = ("system", "user", "assistant")
"""Roles that any template is expected to know."""

GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
"""The mark of what the assistant says, in templates that have it."""

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


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens."""

    ids: list[int]
    """All of it, as the tokenizer's template writes it."""
    counts: list[bool]
    """For each token whether the assistant said it; its end token counts too."""
    turns: list[int]
    """Lengths at which it may be cut: after each thing that the assistant said and that counts."""
    unread: tuple[str, ...] = ()
    """Fields of messages that the template does not write."""


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


def render(tokenizer: Any, messages: Sequence[Message], *, answer: bool = False, tools: Sequence[Any] = ()) -> str:
    """Return the text of a conversation by the tokenizer's template.

    With `answer` it ends where the assistant's next message begins.
    """
    chats = [[{name: value for name, value in message.items() if name != "weight"} for message in messages]]
    try:  # as a batch of one, which may be without any message
        text = tokenizer.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=answer, tools=list(tools) or None
        )[0]
        text.encode()
        return text
    except UnicodeEncodeError:
        raise InputError("the tokenizer's chat template writes half a character") from None
    except Exception as error:  # a template is a program of somebody else's, in a sandbox
        raise InputError(f"the tokenizer's chat template fails ({type(error).__name__}: {error})") from None


def encode_chats(
    tokenizer: Any, chats: Sequence[Sequence[Message]], tools: Sequence[Sequence[Any]] | None = None
) -> list[Encoded]:
    """Encode conversations.

    Each is tokenised as a whole. Where the template marks what the assistant says ({% generation %}), the tokens count
    that transformers' `return_assistant_tokens_mask` gives. Elsewhere a token counts if it begins within what the
    template writes for an assistant's message after the words that ask for one. A message of weight 0 does not count.

    Args:
        tools: for each conversation the tools that the assistant may call, as JSON schemas.

    Raises:
        InputError: the template does not know a role or tool calls, or renders a turn differently once others follow,
            so that the turn can't be located.
    """
    inputs = [_input(tokenizer, *pair) for pair in zip(chats, tools or [()] * len(chats), strict=True)]
    rest = iter(_encode_unmarked(tokenizer, [given for given in inputs if not given.marks]))
    found = [_encode_marked(tokenizer, given) if given.marks else next(rest) for given in inputs]
    return [replace(encoded, unread=given.unread) for encoded, given in zip(found, inputs, strict=True)]


@dataclass(frozen=True)
class _Input:
    """A conversation and what the template writes for it."""

    chat: Sequence[Message]
    tools: Sequence[Any]
    text: str
    marks: bool
    """True if the template marks what the assistant says."""
    unread: tuple[str, ...]


def _input(tokenizer: Any, chat: Sequence[Message], tools: Sequence[Any]) -> _Input:
    unread = _check_template(tokenizer, chat, tools)
    text = render(tokenizer, chat, tools=tools)
    dropped = {f"messages.content of {m['role']}" for m in chat if not _is_written(m.get("content", "").strip(), text)}
    return _Input(chat, tools, text, marks_generation(tokenizer, tools), (*unread, *sorted(dropped)))


def _is_written(content: str, text: str) -> bool:
    """Return whether a template writes a content whole, perhaps as JSON."""
    return content in text or json.dumps(content)[1:-1] in text


def is_trained_on(message: Message) -> bool:
    """Return whether the loss counts a message."""
    return message["role"] == "assistant" and bool(message.get("weight", 1))


def marks_generation(tokenizer: Any, tools: Sequence[Any] = ()) -> bool:
    """Return whether the template says itself what the assistant says; there may be another one for tools."""
    return bool(GENERATION.search(tokenizer.get_chat_template(tools=list(tools) or None)))


def _check_template(tokenizer: Any, chat: Sequence[Message], tools: Sequence[Any]) -> tuple[str, ...]:
    """Return the fields of a conversation that the template does not write, if they may be missing.

    What the template writes for a conversation with a field is compared with what it writes without.

    Raises:
        InputError: it does not know a role, or leaves out tools or calls of them.
    """
    roles = {message["role"] for message in chat} - {*PLAIN_ROLES}
    fields = {name for message in chat for name in OPTIONAL_FIELDS if name in message}
    if not (roles or fields or tools):
        return ()
    text = _would_write(tokenizer, chat, tools)
    if "tool_calls" in fields and text == _would_write(tokenizer, [_without(m, "tool_calls") for m in chat], tools):
        raise InputError("a message has tool_calls, which the tokenizer's chat template does not know")
    if text is None:
        render(tokenizer, chat, tools=tools)  # which says why it fails
    for role in sorted(roles):
        other = [message | {"role": "nobody"} if message["role"] == role else message for message in chat]
        if _would_write(tokenizer, other, tools) == text:
            raise InputError(
                f"the role of a message must be system, user or assistant, not {role!r}, which the tokenizer's chat "
                "template does not know"
            )
    if tools and _would_write(tokenizer, chat, ()) == text:
        raise InputError("the conversation has tools, which the tokenizer's chat template does not know")
    return tuple(
        f"messages.{field}"
        for field in sorted(fields)
        if text == _would_write(tokenizer, [_without(message, field) for message in chat], tools)
    )


def _without(message: Message, field: str) -> Message:
    return {name: value for name, value in message.items() if name != field}


def _would_write(tokenizer: Any, chat: Sequence[Message], tools: Sequence[Any], *, answer: bool = False) -> str | None:
    """Return what the template writes, or None where it fails."""
    try:
        return render(tokenizer, chat, answer=answer, tools=tools)
    except InputError:
        return None


def _encode_unmarked(tokenizer: Any, inputs: Sequence[_Input]) -> list[Encoded]:
    """Encode conversations by a template that does not mark what the assistant says."""
    if not inputs:
        return []
    spans = [_spans(tokenizer, given) for given in inputs]
    encoded = tokenizer(
        [given.text for given in inputs], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    found = []
    for ids, offsets, of in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
        starts = [start for start, _ in offsets]
        counts = [any(begin <= start < end for begin, end, _ in of) for start in starts]
        turns = [sum(start < after for start in starts) for _, _, after in of]
        found.append(Encoded(ids, counts, turns))
    return found


def _encode_marked(tokenizer: Any, given: _Input) -> Encoded:
    """Encode a conversation by a template that marks what the assistant says."""
    chat, tools = given.chat, given.tools
    try:
        found = tokenizer.apply_chat_template(
            [_without(message, "weight") for message in chat], tools=list(tools) or None, return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
        )  # fmt: skip
    except Exception as error:
        raise InputError(f"the tokenizer's chat template fails ({type(error).__name__}: {error})") from None
    starts = [start for start, _ in found["offset_mapping"]]
    counts = [bool(counted) for counted in found["assistant_masks"]]
    said = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    turns = _turns_by_text(tokenizer, given, said, starts) or _turns_by_runs(counts, len(said))
    if turns is None and not all(is_trained_on(chat[i]) for i in said):
        raise InputError(
            "the chat template renders a turn differently once others follow, so that a message of weight 0 can't be "
            "located"
        )
    ends = []
    for i, (begin, end) in zip(said, turns or [], strict=False):
        if is_trained_on(chat[i]):
            ends.append(end)
        else:
            counts[begin:end] = [False] * (end - begin)
    return Encoded(found["input_ids"], counts, ends)


def _turns_by_text(tokenizer: Any, given: _Input, said: list[int], starts: list[int]) -> list[tuple[int, int]] | None:
    """Return (begin, end) in tokens of each message of the assistant; None where the template rewrites a turn."""
    chat, tools, whole = given.chat, given.tools, given.text
    turns = []
    for i in said:
        ends = []
        for text in (
            _would_write(tokenizer, chat[:i], tools) if i else "",
            _would_write(tokenizer, chat[: i + 1], tools),
        ):
            if text is None or not whole.startswith(text):
                return None
            ends.append(sum(start < len(text) for start in starts))
        turns.append((ends[0], ends[1]))
    return turns


def _turns_by_runs(counts: list[bool], n_said: int) -> list[tuple[int, int]] | None:
    """Return (begin, end) of each run of tokens that count; None where they are not one for each message."""
    padded = [False, *counts, False]
    edges = [i for i in range(len(padded) - 1) if padded[i] != padded[i + 1]]
    turns = list(zip(edges[::2], edges[1::2], strict=True))
    return turns if len(turns) == n_said else None


def _spans(tokenizer: Any, given: _Input) -> list[tuple[int, int, int]]:
    """Return (begin, end, end of its turn) in the text for each message that counts."""
    chat, tools, whole = given.chat, given.tools, given.text
    spans = []
    for i, message in enumerate(chat):
        if not is_trained_on(message):
            continue
        said = render(tokenizer, chat[: i + 1], tools=tools)
        asked = render(tokenizer, chat[:i], answer=True, tools=tools) if i else _opening(tokenizer, chat, tools, said)
        if not (whole.startswith(said) and said.startswith(asked)):
            raise InputError(
                "the chat template renders a turn differently once others follow, so that the assistant's tokens can't "
                "be located"
            )
        answer = said[len(asked) :].rstrip()  # no white space after its end token
        end = len(asked) + len(answer) if answer.endswith(tokenizer.eos_token or "\0") else len(said)
        spans.append((len(asked), end, len(said)))
    return spans


def _opening(tokenizer: Any, chat: Sequence[Message], tools: Sequence[Any], said: str) -> str:
    """Return what the template writes before what the assistant says in a conversation that it begins.

    Raises:
        InputError: that can't be told.
    """
    request = (_would_write(tokenizer, chat[:1], tools, answer=True) or "").removeprefix(said)  # the words that ask
    if request.strip() and request in said:
        return said[: said.index(request) + len(request)]
    opening = _would_write(tokenizer, [], tools, answer=True)  # fails where the template looks at the first message
    if opening is not None and said.startswith(opening) and (opening.strip() or not request.strip()):
        return opening
    raise InputError(
        "the chat template does not show where the assistant's first message begins, so that its tokens can't be "
        "located"
    )
