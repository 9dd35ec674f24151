"""Documents: the texts and conversations of a file."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Literal

from jaxgpt.chat import Message
from jaxgpt.convert.errors import InputError
from jaxgpt.data import streams
from jaxgpt.data.conversations import conversation_of, filled_fields, listed
from jaxgpt.data.preferences import Preference, preference_of
from jaxgpt.data.records import (
    UNREAD,
    Records,
    begins_with_object,
    read_array,
    read_lines,
    read_parquet,
    read_table,
    read_text,
)
from jaxgpt.data.streams import Advance, readable

Kind = Literal["text", "chat", "pairs", "chat pairs"]

NOUNS: dict[str, str] = {
    "text": "text", "chat": "conversation", "pairs": "preference", "chat pairs": "preference between conversations",
}  # fmt: skip
"""The kinds of documents in words."""


DELIMITERS = {"csv": ",", "tsv": "\t"}
"""The character between the fields of a table in text, by its format."""


@dataclass(frozen=True)
class Reading:
    """How records are read."""

    text_field: str | None = None
    """The field of a text; by default `text`, or else a record holds a conversation."""
    skip_bad_records: bool = False
    """True if a record that can't be read is left out, and not an error."""
    preferences: bool = False
    """True if records hold two answers, of which one is preferred."""


@dataclass(frozen=True)
class Document:
    """A text, in parts that can be read once and in order, a conversation, or a bad record that is left out."""

    number: int
    """Number of the record or line in its file, from 1; 0: the file is the document."""
    text: Iterable[str] = ()
    chat: tuple[Message, ...] | None = None
    tools: tuple[Any, ...] = ()
    """The tools that the assistant may call in a conversation."""
    unread: tuple[str, ...] = ()
    """Fields of the record that hold something, and are not read."""
    problem: str = ""
    """Why the record is left out."""
    preference: Preference | None = None

    @property
    def kind(self) -> Kind:
        """A text, a conversation, or two of them of which one is preferred."""
        if self.preference is not None:
            return "chat pairs" if self.preference.is_chat else "pairs"
        return "text" if self.chat is None else "chat"


@dataclass(frozen=True)
class File:
    """One file of a source: its name, its path, and how it is read."""

    name: str
    format: str
    """text, jsonl, json (an array, or lines), csv, tsv, parquet, or bin: token ids."""
    compression: str
    path: Any
    reading: Reading = Reading()

    @cached_property
    def size(self) -> int:
        """Bytes, as it is stored, when first asked."""
        return streams.stamp(self.path)[0]

    @property
    def stamp(self) -> Any:
        """A value that changes when the file does, most likely."""
        return streams.stamp(self.path)

    @cached_property
    def is_lines(self) -> bool:
        """True if it has one JSON object a line; of a .json the first sign tells, when first asked."""
        if self.format != "json":
            return self.format == "jsonl"
        with readable(self.path), streams.open_stream(self.path, self.compression) as stream:
            return begins_with_object(stream)

    def sha256(self, advance: Advance) -> str:
        """Return the SHA-256 of its bytes, as they are stored."""
        return streams.sha256_of(self.path, advance)

    def where(self, number: int) -> str:
        """Return the name of one of its documents in messages."""
        if not number:
            return self.name
        with contextlib.suppress(InputError):  # a file that is gone has no lines any more
            if self.format in DELIMITERS or self.is_lines:
                return f"{self.name}, line {number:,}"
        return f"{self.name}, record {number:,}"

    def documents(self, advance: Advance) -> Iterator[Document]:
        """Read what the file holds, in order; empty records too.

        Raises:
            InputError: it can't be read, or a record is neither a text nor a conversation.
        """
        with readable(self.path):
            if self.format == "parquet":
                with streams.open_seekable(self.path, self.compression) as file:
                    field = "" if self.reading.preferences else self.reading.text_field or "text"
                    yield from as_documents(self, read_parquet(self.name, file, self.size, advance, field))
                return
            with streams.open_stream(self.path, self.compression, advance) as stream:
                if self.format == "text":
                    yield Document(0, self._text(stream))
                else:
                    yield from as_documents(self, self._records(stream))

    def _records(self, stream: BinaryIO) -> Records:
        if self.format in DELIMITERS:
            return read_table(self.name, stream, DELIMITERS[self.format])
        return (read_lines if self.is_lines else read_array)(self.name, stream)

    def _text(self, stream: BinaryIO) -> Iterator[str]:
        with readable(self.path):  # it is read when `documents` has handed it out
            yield from read_text(self.name, stream)


@dataclass(frozen=True)
class Texts:
    """Texts that are in memory, as if they were a file."""

    name: str
    texts: Sequence[str]
    format: str = "texts"
    compression: str = ""
    stamp: Any = None
    reading: Reading = Reading()

    @property
    def size(self) -> int:
        """Bytes of the texts."""
        return sum(len(text.encode()) for text in self.texts)

    def sha256(self, advance: Advance) -> str:
        """Return the SHA-256 of the texts and of where they end."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(b"%d:" % len(text.encode()) + text.encode())
        advance(self.size)
        return digest.hexdigest()

    def where(self, number: int) -> str:
        """Return the name of one of the texts in messages."""
        return f"{self.name}, text {number:,}"

    def documents(self, advance: Advance) -> Iterator[Document]:
        """Return the texts."""
        for number, text in enumerate(self.texts, 1):
            yield Document(number, (text,))
            advance(len(text.encode()))


@dataclass(frozen=True)
class Source:
    """Files that are read one after the other, and those that are held out of training, if the source says so."""

    name: str
    files: tuple[Any, ...]
    held_out: "Source | None" = None

    @cached_property
    def kind(self) -> Kind | Literal["tokens"]:
        """Kind of the source's documents, by its first record, which is read once.

        Raises:
            InputError: there is no record, or it is neither a text nor a conversation.
        """
        first = self.files[0].format
        if first in ("bin", "text"):
            return "tokens" if first == "bin" else "text"
        for _, document in self.documents(lambda n: None):
            if not document.problem:
                return document.kind
        raise InputError(f"{self.name} is empty")

    def documents(self, advance: Advance) -> Iterator[tuple[int, Document]]:
        """Read all documents, each with the index of its file.

        Raises:
            InputError: they are not all of one kind, or a file can't be read.
        """
        kind = None
        for i, file in enumerate(self.files):
            for document in file.documents(advance):
                if document.problem:
                    yield i, document
                    continue
                if kind not in (None, document.kind):
                    raise InputError(
                        f"{file.where(document.number)}: this is a {NOUNS[document.kind]}, and what comes before it is "
                        f"a {NOUNS[kind]}: they can't be mixed in one source"
                    )
                kind = document.kind
                yield i, document


def as_documents(file: Any, records: Records) -> Iterator[Document]:
    """Turn records into texts, or into conversations where they have no text.

    Raises:
        InputError: a record is neither, and `file.reading` does not say that it is left out.
    """
    reading: Reading = file.reading
    for number, record in records:
        try:
            if isinstance(record, InputError):
                raise record
            document = _document(number, record, reading)
        except InputError as error:
            if not reading.skip_bad_records:
                raise bad_record(file.where(number), error) from None
            document = Document(number, problem=str(error))
        yield document


def bad_record(where: str, error: InputError) -> InputError:
    """Return the error of a bad record that is not left out."""
    return InputError(f"{where}: {error} (skip_bad_records=True leaves bad records out)")


def _document(number: int, record: dict[str, Any], reading: Reading) -> Document:
    """Return the text of a record, or its conversation.

    Raises:
        InputError: it has neither.
    """
    if reading.preferences:
        return _preference(number, record)
    field = reading.text_field or "text"
    text = record.get(field)
    if text is None and reading.text_field is not None:
        if field in record:
            raise InputError(f"{field!r} is null: expected a string")
        raise InputError(f"there is no field {field!r}, which text_field= names; the fields are {listed(record)}")
    if text is None:
        found = conversation_of({name: value for name, value in record.items() if value is not UNREAD})
        for message in found.messages:
            _check_unicode(message.get("content", ""))
        if found.tools or any(len(message) > 2 for message in found.messages):
            try:
                _check_unicode(json.dumps([found.messages, found.tools], ensure_ascii=False, default=str))
            except RecursionError:
                raise InputError("nested too deeply") from None
        return Document(number, (), found.messages, found.tools, found.unread)
    if not isinstance(text, str):
        name = field if reading.text_field is None else repr(field)
        raise InputError(f"{name} must be a string, not {type(text).__name__}")
    _check_unicode(text)
    return Document(number, (text,), unread=filled_fields(record, (field,)))


def _preference(number: int, record: dict[str, Any]) -> Document:
    found = preference_of({name: value for name, value in record.items() if value is not UNREAD})
    for answer in found.pair:
        for part in answer:
            _check_unicode(part if isinstance(part, str) else part.get("content", ""))
    return Document(number, preference=found, unread=found.unread)


def _check_unicode(text: str) -> None:
    """Refuse half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("not valid Unicode: an unpaired surrogate") from None
