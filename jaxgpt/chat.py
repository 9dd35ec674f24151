"""Conversations: from messages to token ids, and which of them the assistant said."""

import bisect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxgpt import chat_templates
from jaxgpt.chat_templates import Message, Request, Written, template_of, write_chats
from jaxgpt.convert.errors import InputError
from jaxgpt.tokenizer import add_tokens

MANY, WINDOW, AT_ONCE = 16, 32, 32
"""Messages beyond which a conversation is looked at in windows; messages of a window, at most; and windows at once."""

MOST_WORK = 10**9
"""Characters that a template may write for one conversation, over all looks at its beginnings."""

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


MARKED = "; to mark them, put {% generation %} and {% endgeneration %} around them in the template"
"""Advice about a template whose assistant's tokens can't be found."""


def prepare_chat(tokenizer: Any) -> tuple[str, ...]:
    """Give a tokenizer that has no chat template the one above, and return the tokens that are new to it.

    Raises:
        InputError: it has no end-of-text token, or does not give its tokens' positions in the text.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "conversations need a tokenizer with a tokenizer.json, which gives each token's position in the text"
        )
    chat_templates.start()
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
    return _text(write_chats(tokenizer, [Request(messages, tools, answer)])[0])


def _text(found: Written | InputError) -> str:
    if isinstance(found, InputError):
        raise found
    return found.text


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
    pairs = list(zip(chats, tools or [()] * len(chats), strict=True))
    marks = [marks_generation(tokenizer, tools) for _, tools in pairs]
    written: dict[int, Written | InputError] = {}
    for is_marked in (False, True):
        places = [i for i, marked in enumerate(marks) if marked == is_marked]
        found = write_chats(tokenizer, [Request(*pairs[i]) for i in places], marks=is_marked)
        written |= dict(zip(places, found, strict=True))
    inputs = [_input(tokenizer, *pair, written[i], marks[i]) for i, pair in enumerate(pairs)]
    rest = iter(_encode_unmarked(tokenizer, [given for given in inputs if not given.is_marked]))
    encoded = [_encode_marked(tokenizer, given) if given.is_marked else next(rest) for given in inputs]
    return [replace(found, unread=given.unread) for found, given in zip(encoded, inputs, strict=True)]


@dataclass(frozen=True)
class _Input:
    """A conversation and what the template writes for it."""

    chat: Sequence[Message]
    tools: Sequence[Any]
    text: str
    is_marked: bool
    """True if the template marks what the assistant says."""
    marks: tuple[tuple[int, int], ...]
    """Where it does."""
    unread: tuple[str, ...]


def _input(
    tokenizer: Any, chat: Sequence[Message], tools: Sequence[Any], written: Written | InputError, is_marked: bool
) -> _Input:
    unread = _check_template(tokenizer, chat, tools)
    text = _text(written)
    dropped, at = set(), 0
    for message in chat:
        at, is_written = _find(message.get("content", "").strip(), text, at)
        if not is_written:
            dropped.add(f"messages.content of {message['role']}")
    return _Input(chat, tools, text, is_marked, written.marks, (*unread, *sorted(dropped)))  # type: ignore[union-attr]


def _find(content: str, text: str, begin: int) -> tuple[int, bool]:
    """Return whether a template writes a content whole, perhaps as JSON, and where to look for the next one."""
    for form in (content, json.dumps(content)[1:-1]):
        for start in (begin, 0):  # most templates write one after the other
            if (place := text.find(form, start)) >= 0:
                return max(begin, place + len(form)), True
    return begin, False


def is_trained_on(message: Message) -> bool:
    """Return whether the loss counts a message."""
    return message["role"] == "assistant" and bool(message.get("weight", 1))


def marks_generation(tokenizer: Any, tools: Sequence[Any] = ()) -> bool:
    """Return whether the template says itself what the assistant says; there may be another one for tools."""
    return bool(GENERATION.search(template_of(tokenizer, tools)))


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
    looks = _looks(tokenizer, inputs)
    spans = [_spans(tokenizer, given, look) for given, look in zip(inputs, looks, strict=True)]
    encoded = tokenizer(
        [given.text for given in inputs], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    found = []
    for ids, offsets, of in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
        starts = [start for start, _ in offsets]
        counts = [False] * len(ids)
        for begin, end, _ in of:
            first, last = (bisect.bisect_left(starts, place) for place in (begin, end))
            counts[first:last] = [True] * (last - first)
        found.append(Encoded(ids, counts, [bisect.bisect_left(starts, after) for _, _, after in of]))
    return found


def _encode_marked(tokenizer: Any, given: _Input) -> Encoded:
    """Encode a conversation by a template that marks what the assistant says."""
    chat = given.chat
    found = tokenizer(given.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts, ends = ([pair[i] for pair in found["offset_mapping"]] for i in (0, 1))
    counts = [False] * len(starts)
    for begin, end in given.marks:  # as transformers' return_assistant_tokens_mask does
        first, last = _token_at(begin, starts, ends), _token_at(end - 1, starts, ends)
        if first is None:
            break
        after = last + 1 if last else len(counts)
        counts[first:after] = [True] * (after - first)
    said = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    turns = _turns_by_text(tokenizer, given, said, starts) or _turns_by_runs(counts, len(said))
    if turns is None and not all(is_trained_on(chat[i]) for i in said):
        raise InputError(
            "the chat template renders a turn differently once others follow, so that a message of weight 0 can't be "
            "located"
        )
    cuts = []
    for i, (begin, end) in zip(said, turns or [], strict=False):
        if is_trained_on(chat[i]):
            cuts.append(end)
        else:
            counts[begin:end] = [False] * (end - begin)
    return Encoded(found["input_ids"], counts, cuts)


def _token_at(place: int, starts: list[int], ends: list[int]) -> int | None:
    """Return the first token that holds a character, or None."""
    i = bisect.bisect_right(ends, place)
    return i if i < len(starts) and starts[i] <= place else None


def _turns_by_text(tokenizer: Any, given: _Input, said: list[int], starts: list[int]) -> list[tuple[int, int]] | None:
    """Return (begin, end) in tokens of each message of the assistant; None where the template rewrites a turn."""
    if len(given.chat) > MANY and (places := _places(tokenizer, given)) is not None:
        bounds = [(places[i].begin, places[i].end) for i in said]
    else:
        bounds = []
        for some in _in_parts(said):
            asked = [Request(given.chat[:n], given.tools) for i in some for n in (i, i + 1)]
            found = [w.text if isinstance(w, Written) else None for w in _write_within(tokenizer, given, asked)]
            for i, (before, after) in zip(some, zip(found[::2], found[1::2], strict=True), strict=True):
                texts = ("" if i == 0 else before, after)
                if any(text is None or not given.text.startswith(text) for text in texts):
                    return None
                bounds.append((len(texts[0] or ""), len(texts[1] or "")))
    return [(bisect.bisect_left(starts, begin), bisect.bisect_left(starts, end)) for begin, end in bounds]


def _turns_by_runs(counts: list[bool], n_said: int) -> list[tuple[int, int]] | None:
    """Return (begin, end) of each run of tokens that count; None where they are not one for each message."""
    padded = [False, *counts, False]
    edges = [i for i in range(len(padded) - 1) if padded[i] != padded[i + 1]]
    turns = list(zip(edges[::2], edges[1::2], strict=True))
    return turns if len(turns) == n_said else None


def _looks(tokenizer: Any, inputs: Sequence[_Input]) -> list[list[Written | InputError] | None]:
    """Write all beginnings of short conversations at once; None for long ones."""
    asked = [
        [] if len(given.chat) > MANY else _beginnings(given, [i for i, m in enumerate(given.chat) if is_trained_on(m)])
        for given in inputs
    ]
    found = iter(write_chats(tokenizer, [request for requests in asked for request in requests]))
    written = [[next(found) for _ in requests] for requests in asked]
    return [None if len(given.chat) > MANY else look for given, look in zip(inputs, written, strict=True)]


def _beginnings(given: _Input, places: Sequence[int]) -> list[Request]:
    """Return the requests for what is written with each message, and for what asks for it."""
    chat, tools = given.chat, given.tools
    return [
        request for i in places for request in (Request(chat[: i + 1], tools), Request(chat[:i], tools, answer=True))
    ]


def _spans(tokenizer: Any, given: _Input, look: list[Written | InputError] | None) -> list[tuple[int, int, int]]:
    """Return (begin, end, end of its turn) in the text for each message that counts.

    Args:
        look: what the template writes for the beginnings of the conversation, if that is known.
    """
    chat, tools, whole = given.chat, given.tools, given.text
    trained = [i for i, message in enumerate(chat) if is_trained_on(message)]
    spans = []
    if len(chat) > MANY and (places := _places(tokenizer, given)) is not None:
        for i in trained:
            place = places[i]
            opening = place.request if i else _opening(tokenizer, chat, tools, whole[: place.end])
            begin = place.begin + len(opening)
            spans.append((begin, _end_of_answer(tokenizer, whole, begin, place.end), place.end))
        return spans
    for some in [trained] if look is not None else _in_parts(trained):
        found = look if look is not None else _write_within(tokenizer, given, _beginnings(given, some))
        for i, asked, opens in zip(some, found[::2], found[1::2], strict=True):
            said = _text(asked)
            opening = _text(opens) if i else _opening(tokenizer, chat, tools, said)
            if not (whole.startswith(said) and said.startswith(opening)):
                raise InputError(
                    "the chat template renders a turn differently once others follow, so that the assistant's tokens "
                    f"can't be located{MARKED}"
                )
            spans.append((len(opening), _end_of_answer(tokenizer, said, len(opening), len(said)), len(said)))
    return spans


def _end_of_answer(tokenizer: Any, text: str, begin: int, end: int) -> int:
    """Return where an answer ends: after its end token, without the white space after that, or else with its turn."""
    answer = text[begin:end].rstrip()
    return begin + len(answer) if answer.endswith(tokenizer.eos_token or "\0") else end


def _in_parts(items: Sequence[int]) -> list[Sequence[int]]:
    """Return the items in parts: first a single one, which may show that the rest is in vain."""
    return [items[:1], *(items[i : i + AT_ONCE] for i in range(1, len(items), AT_ONCE))] if items else []


def _write_within(tokenizer: Any, given: _Input, asked: Sequence[Request]) -> list[Written | InputError]:
    """Write beginnings of a conversation.

    Raises:
        InputError: they would be too many, as each is written from its first message on.
    """
    if len(given.chat) > MANY and len(given.chat) * len(given.text) > MOST_WORK:
        raise InputError(
            f"the conversation has {len(given.chat):,} messages, too many for this chat template, which has to "
            "write the whole conversation again for each: split it"
        )
    return write_chats(tokenizer, asked)


@dataclass(frozen=True)
class _Place:
    """Where the template writes a message."""

    begin: int
    end: int
    request: str
    """The text that it writes before the message where it asks the assistant for it; empty for messages of others."""


def _places(tokenizer: Any, given: _Input) -> list[_Place] | None:
    """Return where the template writes each message, found by looking at a few messages at a time; None if in vain.

    The time is linear in the conversation's length: what is written for a message is what a window of the messages
    before it gets more by it. All of it, one after the other, must be the whole text.
    """
    chat, tools, whole = given.chat, given.tools, given.text
    places: list[_Place] = []
    at = 0
    for first in range(0, len(chat), AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, len(chat)))
        asked = []
        for i in numbers:
            window = _window(chat, i)
            asked += [
                Request(window, tools), Request(window[:-1], tools), Request(window[:-1], tools, answer=True)
            ]  # fmt: skip
        found = write_chats(tokenizer, asked)
        texts = [w.text if isinstance(w, Written) else None for w in found]
        for i, after, before, opens in zip(numbers, texts[::3], texts[1::3], texts[2::3], strict=True):
            before = before if i else ""
            if after is None or before is None or not after.startswith(before):
                return None
            request = ""
            if chat[i]["role"] == "assistant" and i:
                if opens is None or not (opens.startswith(before) and after.startswith(opens)):
                    return None
                request = opens[len(before) :]
            more = after[len(before) :]
            if not whole.startswith(more, at):
                return None
            places.append(_Place(at, at + len(more), request))
            at += len(more)
    return places if at == len(whole) else None


def _window(chat: Sequence[Message], i: int) -> list[Message]:
    """Return the messages to look at for one of them: from a user's on that is before it, and the system's."""
    start = i - 2
    while start > max(0, i - WINDOW) and chat[start]["role"] != "user":
        start -= 1
    if start <= 2:
        return list(chat[: i + 1])
    head = [chat[0]] if chat[0]["role"] == "system" else []
    return [*head, *chat[start : i + 1]]


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
        f"located{MARKED}"
    )
