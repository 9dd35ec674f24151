"""Documents to tokens: pieces of text on all cores, and conversations, into the files of a cache."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from jaxgpt.chat import Encoded, encode_chats
from jaxgpt.convert.errors import InputError, escaped
from jaxgpt.convert.json_input import parse_json
from jaxgpt.data.documents import Document, Kind, Source, bad_record
from jaxgpt.data.pieces import Cutter, encoders
from jaxgpt.data.preferences import Preference
from jaxgpt.data.token_files import Writer
from jaxgpt.tokenizer import begin_ids

BATCH, MOST = 2**21, 4096
"""Bytes of text that are encoded at once, about, and pieces, at most."""

LONGEST_CHAT, CHAT_COST = 2**20, 4
"""Characters of a conversation, at most, which is tokenised as a whole, and how much more each costs than of a text."""

NAMES, LETTERS = 64, 60
"""Names of unread fields that are counted, and letters of each that are kept, at most."""

LONG = 2.0
"""Seconds after which work is announced where no bar can be seen, and its end too."""


class ReadingProgress:
    """A bar of the bytes of a source on a terminal; elsewhere, for long work, a line at its beginning and its end.

    Everything goes to standard error.
    """

    def __init__(self, source: Source, doing: str, shown: bool):
        self._begun, self._source = time.monotonic(), source
        self._bar = tqdm(
            total=sum(file.size for file in source.files) if shown else None,
            desc=doing, unit="B", unit_scale=True, leave=False, delay=1, disable=None if shown else True,
        )  # fmt: skip
        self._in_lines = shown and self._bar.disable
        announcement = escaped(f"{doing} {source.name} …")
        self._timer = threading.Timer(LONG, print, (announcement,), {"file": sys.stderr, "flush": True})
        self._timer.daemon = True

    def __enter__(self) -> "ReadingProgress":
        if self._in_lines:
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._bar.close()

    def update(self, n: int) -> None:
        """Count `n` bytes more."""
        self._bar.update(n)

    def summary(self, documents: int, tokens: int) -> None:
        """Say what was done, if it took long and there is no bar."""
        seconds = time.monotonic() - self._begun
        if self._in_lines and seconds > LONG:
            what = f"{documents:,} documents, {tokens:,} tokens"
            print(f"tokenised {escaped(self._source.name)}: {what} in {seconds:,.0f} s", file=sys.stderr)


@dataclass(frozen=True)
class _Item:
    """A piece of a text, the end of one (no text), a conversation, or two answers to one prompt."""

    file: int
    number: int
    text: str | None = None
    is_first: bool = False
    """The piece is the first of its text."""
    chat: Any = None
    tools: tuple[Any, ...] = ()
    preference: Preference | None = None

    @property
    def chats(self) -> list[Any]:
        """The conversations of the item."""
        if self.preference is None:
            return [] if self.chat is None else [self.chat]
        return list(self.preference.pair) if self.preference.is_chat else []


@dataclass
class Remarks:
    """The parts of a source that are not in its tokens."""

    unread: Counter[str] = field(default_factory=Counter)
    """How many records have each field that is not read; fields beyond the first few under an empty name."""
    n_bad: int = 0
    """Bad records that are left out."""
    first_bad: tuple[int, int, str] | None = None
    """The first of them: index of its file, number, and why."""
    as_text: int | None = None
    """Index of the first file that is read as a text, and begins with a line that is a record."""

    def count_unread(self, fields: Iterable[str]) -> None:
        """Count the fields of one record."""
        for name in {name[:LETTERS] for name in fields}:
            self.unread[name if name in self.unread or len(self.unread) < NAMES else ""] += 1

    def leave_out(self, file: int, number: int, problem: str) -> None:
        """Count a bad record."""
        self.n_bad += 1
        here = (file, number, problem[:1000])
        self.first_bad = here if self.first_bad is None else min(self.first_bad, here)


def write_tokens(source: Source, tokenizer: Any, writer: Writer, progress: bool) -> dict[str, Any]:
    """Tokenise a source into the files of a cache, and return the description of the entry.

    Raises:
        InputError: there is no text, or it can't be read.
    """
    begin, end = begin_ids(tokenizer), tokenizer.eos_token_id
    kind: Kind = "text"
    n_bytes, tokens, turns, remarks = 0, 0, 0, Remarks()
    documents = [0] * len(source.files)
    for name in ("tokens", "ends", "records"):
        writer.append(name, [])

    def finish(item: _Item) -> None:
        writer.append("ends", [tokens])
        writer.append("records", [item.number])
        documents[item.file] += 1

    with ReadingProgress(source, "tokenising", progress) as bar:
        for batch, encoded in _encoded(source, tokenizer, bar, remarks):
            for item, found in zip(batch, encoded, strict=True):
                if isinstance(found, InputError):
                    if not source.files[item.file].reading.skip_bad_records:
                        raise bad_record(source.files[item.file].where(item.number), found)
                    remarks.leave_out(item.file, item.number, str(found))
                elif item.chat is not None or item.preference is not None:
                    kind = _kind(item)
                    n_bytes += sum(len(m.get("content", "").encode()) for chat in item.chats for m in chat)
                    for part in found:
                        remarks.count_unread(part.unread)
                        writer.append("tokens", part.ids)
                        writer.append("counts", part.counts)
                        writer.append("turns", [tokens + turn for turn in part.turns])
                        tokens, turns = tokens + len(part.ids), turns + len(part.turns)
                        writer.append("turn_ends", [turns])
                        finish(item)
                elif item.text is not None:
                    n_bytes += len(item.text.encode())
                    if item.is_first and begin:
                        writer.append("tokens", begin)
                        tokens += len(begin)
                    writer.append("tokens", found)
                    tokens += len(found)
                else:
                    writer.append("tokens", [] if end is None else [end])
                    tokens += end is not None
                    finish(item)
        if not tokens:
            left_out = f": {remarks.n_bad:,} bad records are left out" if remarks.n_bad else ""
            raise InputError(f"{source.name} is empty{left_out}")
        bar.summary(sum(documents), tokens)
    files = [{"name": file.name, "documents": n} for file, n in zip(source.files, documents, strict=True)]
    return {
        "kind": kind,
        "bytes": n_bytes,
        "files": files,
        "unread": dict(remarks.unread),
        "n_bad": remarks.n_bad,
        "first_bad": remarks.first_bad,
        "as_text": remarks.as_text,
    }


def _encoded(
    source: Source, tokenizer: Any, bar: ReadingProgress, remarks: Remarks
) -> Iterator[tuple[list[_Item], list[Any]]]:
    """Return batches and their tokens; the next batch is read and cut while one is encoded."""
    encode, encode_all = encoders(tokenizer)

    def work(batch: list[_Item]) -> list[Any]:
        if batch[0].chats:
            return _chats(tokenizer, batch)
        if batch[0].preference is not None:
            return [_encode_texts(tokenizer, item.preference.pair) for item in batch if item.preference]
        ids = iter(encode_all([item.text for item in batch if item.text is not None]))
        return [next(ids) if item.text is not None else None for item in batch]

    waiting: tuple[list[_Item], Future] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in _batches(_items(source, Cutter(encode), bar, remarks)):
            coming = batch, pool.submit(work, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _items(source: Source, cutter: Cutter, bar: ReadingProgress, remarks: Remarks) -> Iterator[_Item]:
    for file, document in source.documents(bar.update):
        if document.problem:
            remarks.leave_out(file, document.number, document.problem)
            continue
        remarks.count_unread(document.unread)
        if document.chat is not None:
            yield _Item(file, document.number, chat=document.chat, tools=document.tools)
            continue
        if document.preference is not None:
            yield _Item(file, document.number, preference=document.preference)
            continue
        pieces = 0
        for piece in cutter.pieces(document.text, _where(source, file, document)):
            if not pieces and not document.number and remarks.as_text is None and _is_record(piece):
                remarks.as_text = file
            pieces += 1
            yield _Item(file, document.number, text=piece, is_first=pieces == 1)
        if pieces:
            yield _Item(file, document.number)


def _is_record(text: str) -> bool:
    """Return whether the first line of a text is a JSON object."""
    line = text.lstrip("\ufeff \t\r\n").partition("\n")[0]
    try:
        return line.startswith("{") and isinstance(parse_json(line), dict)
    except InputError:
        return False


def _batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    size = 0
    for item in items:
        item_size = _size(item)
        if batch and size + item_size > 2 * BATCH:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item_size
        if size >= BATCH or len(batch) >= MOST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(item: _Item) -> int:
    """Return about how many bytes of text an item holds, to bound what is in memory."""
    if item.chats:
        return CHAT_COST * sum(_size_of_chat(item, chat) for chat in item.chats)
    if item.preference is not None:
        return CHAT_COST * sum(len(text) for parts in item.preference.pair for text in parts)
    return len((item.text or "").encode())


def _kind(item: _Item) -> Kind:
    return "chat" if item.preference is None else "chat pairs" if item.preference.is_chat else "pairs"


def _size_of_chat(item: _Item, chat: Any) -> int:
    size = sum(len(message.get("content", "")) for message in chat)
    others = [message for message in chat if len(message) > 2]
    if not others and not item.tools:
        return size
    try:
        return size + len(json.dumps([others, item.tools], default=str))
    except RecursionError:  # the template will not get far, either
        return BATCH


def _chats(tokenizer: Any, batch: list[_Item]) -> list[Any]:
    """Return the conversations of each item in tokens, or why they can't be encoded."""
    try:
        for item in batch:
            if (size := max(_size_of_chat(item, chat) for chat in item.chats)) > LONGEST_CHAT:
                raise InputError(f"the conversation has {size:,} characters, and {LONGEST_CHAT:,} is the most")
        chats = [(chat, item.tools) for item in batch for chat in item.chats]
        encoded = iter(encode_chats(tokenizer, [chat for chat, _ in chats], [tools for _, tools in chats]))
        return [[next(encoded) for _ in item.chats] for item in batch]
    except InputError as error:
        if len(batch) == 1:
            return [error]
    found: list[Any] = []
    for item in batch:  # which of them is it
        found += _chats(tokenizer, [item])
    return found


def _encode_texts(tokenizer: Any, pair: Sequence[tuple[str, str]]) -> list[Encoded] | InputError:
    """Return two texts in tokens, each a prompt and what follows it, which alone counts, with the end of text."""
    found, end = [], [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    begin = begin_ids(tokenizer)
    for which, (prompt, answer) in zip(("chosen", "rejected"), pair, strict=True):
        if len(prompt) + len(answer) > LONGEST_CHAT:
            return InputError(f"the text has {len(prompt) + len(answer):,} characters; {LONGEST_CHAT:,} is the most")
        encoded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = [*begin, *encoded["input_ids"], *end]
        counts = [start >= len(prompt) for start, _ in encoded["offset_mapping"]]
        counts = [False] * len(begin) + counts + [True] * len(end)
        if not any(counts):
            return InputError(f"the {which} answer adds no token after the prompt")
        found.append(Encoded(ids, counts, [len(ids)]))
    return found


def _where(source: Source, file: int, document: Document) -> str:
    return source.files[file].where(document.number)
