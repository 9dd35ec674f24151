"""Documents: the texts and conversations of a file."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Literal

from jaxgpt.chat import Message, messages_of
from jaxgpt.convert.errors import InputError
from jaxgpt.data import streams
from jaxgpt.data.records import read_array, read_lines, read_parquet, read_text
from jaxgpt.data.streams import Advance, readable

NOUNS = {"text": "text", "chat": "conversation"}
"""The kinds of documents in words."""


@dataclass(frozen=True)
class Document:
    """A text, in parts that can be read once and in order, or a conversation."""

    number: int
    """Number of the record or line in its file, from 1; 0: the file is the document."""
    text: Iterable[str] = ()
    chat: tuple[Message, ...] | None = None

    @property
    def kind(self) -> Literal["text", "chat"]:
        """A text or a conversation."""
        return "text" if self.chat is None else "chat"


@dataclass(frozen=True)
class File:
    """One file of a source: its name, its path, and how it is read."""

    name: str
    format: str
    """text, jsonl, json, parquet, or bin: token ids."""
    compression: str
    path: Any

    @cached_property
    def size(self) -> int:
        """Bytes, as it is stored, when first asked."""
        return streams.stamp(self.path)[0]

    @property
    def stamp(self) -> Any:
        """A value that changes when the file does, most likely."""
        return streams.stamp(self.path)

    def sha256(self, advance: Advance) -> str:
        """Return the SHA-256 of its bytes, as they are stored."""
        return streams.sha256_of(self.path, advance)

    def where(self, number: int) -> str:
        """Return the name of one of its documents in messages."""
        return f"{self.name}, {'line' if self.format == 'jsonl' else 'record'} {number:,}" if number else self.name

    def documents(self, advance: Advance) -> Iterator[Document]:
        """Read what the file holds, in order; empty records too.

        Raises:
            InputError: it can't be read, or a record is neither a text nor a conversation.
        """
        with readable(self.path):
            if self.format == "parquet":
                with streams.open_seekable(self.path, self.compression) as file:
                    yield from as_documents(self, read_parquet(self.name, file, self.size, advance))
                return
            with streams.open_stream(self.path, self.compression, advance) as stream:
                if self.format == "text":
                    yield Document(0, self._text(stream))
                else:
                    read = read_lines if self.format == "jsonl" else read_array
                    yield from as_documents(self, read(self.name, stream))

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
    def kind(self) -> Literal["text", "chat", "tokens"]:
        """Kind of the source's documents, by its first record, which is read once.

        Raises:
            InputError: there is no record, or it is neither a text nor a conversation.
        """
        first = self.files[0].format
        if first in ("bin", "text"):
            return "tokens" if first == "bin" else "text"
        for _, document in self.documents(lambda n: None):
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
                if kind not in (None, document.kind):
                    raise InputError(
                        f"{file.where(document.number)}: a {NOUNS[document.kind]} after {NOUNS[kind]}s: "
                        "texts and conversations can't be mixed in one source"
                    )
                kind = document.kind
                yield i, document


def as_documents(file: Any, records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Document]:
    """Turn records into texts, or into conversations where they have no text.

    Raises:
        InputError: a record is neither.
    """
    for number, record in records:
        try:
            text = record.get("text")
            if text is not None and not isinstance(text, str):
                raise InputError(f"text must be a string, not {type(text).__name__}")
            document = Document(number, (), messages_of(record)) if text is None else Document(number, (text,))
            for part in document.text or (message["content"] for message in document.chat or ()):
                part.encode()
        except UnicodeEncodeError:
            raise InputError(f"{file.where(number)}: not valid Unicode: an unpaired surrogate") from None
        except InputError as error:
            raise InputError(f"{file.where(number)}: {error}") from None
        yield document
