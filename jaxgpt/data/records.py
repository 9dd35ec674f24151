"""Records and texts out of streams: lines of JSON, an array of it, tables, and plain UTF-8."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from jaxgpt.convert.errors import InputError, about
from jaxgpt.convert.json_input import MAX_VALUES, cause_of, check_n_values, parse_json, parse_next
from jaxgpt.data.streams import CHUNK, Advance

LONGEST = 64 * 2**20
"""Bytes of one line or one object of JSON, at most."""

ROWS = 128
"""Rows of a table that are in memory at a time."""

WHITESPACE = re.compile(r"[ \t\r\n]*")

UNREAD: Any = object()
"""The value of a column that holds something and is not read."""

Records = Iterator[tuple[int, dict[str, Any] | InputError]]
"""Records with their numbers from 1, where a file has lines those of the lines; or why one can't be read, where the
next one can."""


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
        if len(line) > LONGEST:
            raise InputError(f"{name}, line {number:,}: this record is longer than {LONGEST // 2**20} MiB")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, _object(line)


def begins_with_object(stream: BinaryIO) -> bool:
    """Return whether JSON begins with an object, as lines do, and not with an array."""
    chunk = stream.read(CHUNK).removeprefix(codecs.BOM_UTF8)
    while chunk:
        if first := chunk.lstrip()[:1]:
            return first == b"{"
        chunk = stream.read(CHUNK)
    return False


def read_array(name: str, stream: BinaryIO) -> Records:
    """Read the objects of one JSON array, with little more than one of them in memory."""
    signs, number = _Signs(read_text(name, stream)), 0
    signs.skip("\ufeff")
    if not signs.skip("["):
        raise InputError(f"{name} does not begin with [ or {{: expected one array of objects, or one object a line")
    while not (number == 0 and signs.skip("]")):
        number += 1
        where = f"{name}, record {number:,}"
        if (sign := signs.next()) != "{":
            raise InputError(f"{where}: expected an object, not {sign or 'the end of the file'}")
        while True:
            try:
                with about(where):
                    check_n_values(signs.text, MAX_VALUES + CHUNK)  # of this record, and what was read behind it
                    record, signs.at = parse_next(signs.text, signs.at)
                break
            except InputError:
                raise
            except ValueError as error:
                if not signs.more():
                    raise InputError(f"{where}: not JSON: {cause_of(error, signs.at)}") from None
        yield number, record
        if signs.skip("]"):
            break
        if not signs.skip(","):
            raise InputError(f"{where}: expected a comma or the end of the array after this object")
    if signs.next():
        raise InputError(f"{name}: unexpected text after the array")


def read_table(name: str, stream: BinaryIO, delimiter: str) -> Records:
    """Read the rows of a table in text (CSV, TSV) by the names in its first row; blank lines are skipped.

    Raises:
        InputError: it is not UTF-8 or not CSV, or the first row names a column twice.
    """
    lines = _Lines(name, stream)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        number, lines.size = lines.number + 1, 0
        limit = csv.field_size_limit(LONGEST)  # of the whole process
        try:
            row = next(rows, None)
        except csv.Error as error:
            reason = str(error).replace("\t", r"\t")
            raise InputError(f"{name}, line {number:,}: not CSV: {reason}") from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if not row:
            continue
        if not header:
            header = row
            column, n = Counter(header).most_common(1)[0]
            if n > 1:
                raise InputError(f"{name}, line {number:,}: the header has the column {column[:60]!r} twice")
        elif len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        else:
            yield number, InputError(f"{len(row)} fields, but the header has {len(header)}")


def read_parquet(name: str, file: BinaryIO, size: int, advance: Advance, field: str = "text") -> Records:
    """Read the rows of a Parquet file; if it has the field of a text, the values of no other are read.

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
        rows, columns = table.metadata.num_rows, text_column(table.schema_arrow, field)
        others, number = unread_columns(table.schema_arrow, columns), 0
        for batch in table.iter_batches(ROWS, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                number += 1
                yield number, record | others
            advance(size * batch.num_rows // max(rows, 1))
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} can't be read as Parquet ({str(error).splitlines()[0]})") from None


def text_column(schema: Any, field: str = "text") -> list[str] | None:
    """Return the column of a text alone, where there is one: the other columns say nothing about a text."""
    kind = str(schema.field(field).type) if schema.names.count(field) == 1 else ""
    return [field] if kind in ("string", "large_string", "string_view") else None


def unread_columns(schema: Any, columns: list[str] | None) -> dict[str, Any]:
    """Return the columns beside those that are read, as fields whose value is unknown."""
    return {} if columns is None else {name: UNREAD for name in schema.names if name not in columns}


def _object(line: bytes) -> dict[str, Any] | InputError:
    """Return the object of a line, or why there is none."""
    try:
        record = parse_json(line, has_nan=False)
    except InputError as error:
        return error
    return record if isinstance(record, dict) else InputError(f"expected an object, not {type(record).__name__}")


class _Lines:
    """The lines of a text with their ends; `size` counts the bytes since it was last set to 0."""

    def __init__(self, name: str, stream: BinaryIO):
        self._name, self._stream, self.number, self.size = name, stream, 0, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(LONGEST + 1)
        if not line:
            raise StopIteration
        self.number, self.size = self.number + 1, self.size + len(line)
        where = f"{self._name}, line {self.number:,}"
        if self.size > LONGEST:
            raise InputError(f"{where}: this record is longer than {LONGEST // 2**20} MiB")
        if b"\0" in line:
            raise InputError(f"{where}: it contains a zero byte, so it is not text")
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: {cause_of(error)}") from None


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
