"""Records and texts out of streams: lines of JSON, an array of it, Parquet, and plain UTF-8."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from jaxgpt.convert.errors import InputError
from jaxgpt.data.streams import CHUNK, Advance

LONGEST = 256 * 2**20
"""Bytes of one line or one object of JSON, at most."""

ROWS = 128
"""Rows of a table that are in memory at a time."""

WHITESPACE = re.compile(r"[ \t\r\n]*")

Records = Iterator[tuple[int, dict[str, Any]]]
"""Records with their numbers from 1; of lines of JSON, those of the lines."""


def read_text(name: str, stream: BinaryIO) -> Iterator[str]:
    """Read a text in parts of about a megabyte.

    Raises:
        InputError: it is not UTF-8, or holds a zero byte, as no text does.
    """
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        chunk = stream.read(CHUNK)
        if (zero := chunk.find(b"\0")) >= 0:
            raise InputError(f"{name} is not text: there is a zero byte at {position + zero:,}")
        begun = position - len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            byte, where = error.object[error.start], begun + error.start
            raise InputError(f"{name} is not UTF-8 text: byte {byte:#x} at {where:,}") from None
        if not chunk:
            return
        position += len(chunk)
        yield text


def read_lines(name: str, stream: BinaryIO) -> Records:
    """Read one JSON object a line; blank lines are skipped."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        where = f"{name}, line {number:,}"
        if len(line) > LONGEST:
            raise InputError(f"{where}: this record is longer than {LONGEST // 2**20} MiB")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, _object(where, line)


def read_array(name: str, stream: BinaryIO) -> Records:
    """Read the objects of one JSON array, with little more than one of them in memory."""
    decoder, signs, number = json.JSONDecoder(parse_constant=_no_number), _Signs(read_text(name, stream)), 0
    signs.skip("\ufeff")
    if not signs.skip("["):
        raise InputError(
            f"{name} does not begin with [: expected one array of objects; if it has one object a line, name it .jsonl"
        )
    while not (number == 0 and signs.skip("]")):
        number += 1
        where = f"{name}, record {number:,}"
        if (sign := signs.next()) != "{":
            raise InputError(f"{where}: expected an object, not {sign or 'the end of the file'}")
        while True:
            try:
                record, signs.at = decoder.raw_decode(signs.text, signs.at)
                break
            except RecursionError:
                raise InputError(f"{where}: nested too deeply") from None
            except ValueError as error:
                if not signs.more():
                    raise InputError(f"{where}: {_what(error, signs.at)}") from None
        yield number, record
        if signs.skip("]"):
            break
        if not signs.skip(","):
            raise InputError(f"{where}: expected a comma or the end of the array after this object")
    if signs.next():
        raise InputError(f"{name}: unexpected text after the array")


def read_parquet(name: str, file: BinaryIO, size: int, advance: Advance) -> Records:
    """Read the rows of a Parquet file.

    `advance` is told parts of `size`, in proportion to the rows that are read.

    Raises:
        InputError: pyarrow is absent, or can't read it.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{name}: Parquet needs pip install 'jaxgpt[datasets]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False)
        rows, columns = table.metadata.num_rows, text_column(table.schema_arrow)
        number = 0
        for batch in table.iter_batches(ROWS, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                number += 1
                yield number, record
            advance(size * batch.num_rows // max(rows, 1))
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} can't be read as Parquet ({str(error).splitlines()[0]})") from None


def text_column(schema: Any) -> list[str] | None:
    """Return the column `text` alone, where there is one: the other columns say nothing about a text."""
    kind = str(schema.field("text").type) if "text" in schema.names else ""
    return ["text"] if kind in ("string", "large_string", "string_view") else None


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: {_what(error)}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object, not {type(record).__name__}")
    return record


def _what(error: ValueError, begin: int = 0) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}, at its character {error.pos - begin + 1:,}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: byte {error.object[error.start]:#x} at {error.start:,}"
    return f"not JSON: {str(error).splitlines()[0]}"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


class _Signs:
    """A text that comes in parts, and a position in it."""

    def __init__(self, parts: Iterator[str]):
        self._parts, self.text, self.at = parts, "", 0

    def more(self) -> bool:
        """Double the text that is held from the position on, so that no object is parsed often.

        Return False where nothing follows.
        """
        parts = [self.text[self.at :]]
        while sum(map(len, parts)) <= LONGEST and (part := next(self._parts, "")):
            parts.append(part)
            if sum(map(len, parts[1:])) >= len(parts[0]):
                break
        self.text, self.at = "".join(parts), 0
        return len(parts) > 1

    def next(self) -> str:
        """Go to the next sign that is no white space, and return it; empty at the end."""
        while True:
            self.at = WHITESPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def skip(self, sign: str) -> bool:
        """Go past the next sign if it is this one, and return whether it is."""
        found = self.next() == sign
        self.at += found
        return found
