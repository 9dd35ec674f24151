"""Data sets of Hugging Face's `datasets`: saved in a folder, or on the hub."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxgpt.convert.errors import InputError
from jaxgpt.data.documents import Document, Reading, Source, as_documents
from jaxgpt.data.records import ROWS, text_column, unread_columns
from jaxgpt.data.streams import Advance, readable

HELD_OUT = ("validation", "valid", "val", "dev", "test")
"""Splits that are held out of training, the first that there is."""


@dataclass(frozen=True)
class Split:
    """One split of a data set, as if it were a file."""

    name: str
    dataset: Any
    reading: Reading = Reading()
    format: str = "rows"
    compression: str = ""
    stamp: Any = None

    @property
    def size(self) -> int:
        """Bytes that it would take in memory."""
        return self.dataset.data.nbytes

    def sha256(self, advance: Advance) -> str:
        """Return the SHA-256 of its rows."""
        digest = hashlib.sha256()
        with readable(self.name):
            for _, record in self._rows(advance):  # Arrow's own bytes tell how the rows lie, too
                digest.update(json.dumps(record, default=str).encode() + b"\n")
        return digest.hexdigest()

    def where(self, number: int) -> str:
        """Return the name of one of its rows in messages."""
        return f"{self.name}, record {number:,}"

    def documents(self, advance: Advance) -> Iterator[Document]:
        """Read its rows."""
        others = unread_columns(self.dataset.features.arrow_schema, self._columns)
        with readable(self.name):
            yield from as_documents(self, ((number, record | others) for number, record in self._rows(advance)))

    @property
    def _columns(self) -> list[str] | None:
        field = "" if self.reading.preferences else self.reading.text_field or "text"
        return text_column(self.dataset.features.arrow_schema, field)

    def _rows(self, advance: Advance) -> Iterator[tuple[int, dict[str, Any]]]:
        number, each = 0, self.size // max(len(self.dataset), 1)
        dataset = self.dataset.select_columns(self._columns) if self._columns else self.dataset
        for table in dataset.with_format("arrow").iter(ROWS):
            for record in table.to_pylist():
                number += 1
                yield number, record
            advance(each * table.num_rows)


def find_saved(folder: Any, reading: Reading) -> Source:
    """Open what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    datasets = _package(str(folder))
    try:
        return _source(str(folder), datasets.load_from_disk(str(folder)), reading)
    except InputError:
        raise
    except Exception as error:  # JSON, Arrow and the file system fail in their own ways
        raise InputError(f"{folder} can't be read as a saved data set: {_cause(error)}") from None


def find_on_hub(source: str, reading: Reading) -> Source:
    """Open `hf:OWNER/NAME` or `hf:OWNER/NAME:SPLIT`.

    Raises:
        InputError: there is no such data set or split, it needs code of its own, or the hub can't be reached.
    """
    match = re.fullmatch(r"hf:((?:[\w.-]+/)?[\w.-]+)(?::([\w.\[\]:%+-]+))?", source)
    if not match:
        raise InputError(f"{source} is not of the form hf:OWNER/NAME or hf:OWNER/NAME:SPLIT")
    datasets, (name, split) = _package(source), match.groups()
    try:
        return _source(source, datasets.load_dataset(name, split=split), reading)
    except InputError:
        raise
    except Exception as error:  # the network, the hub and every format of its files fail in their own ways
        raise InputError(f"{source} can't be read: {_cause(error)}") from None


def _source(name: str, loaded: Any, reading: Reading) -> Source:
    if not isinstance(loaded, dict):
        return Source(name, (Split(name, loaded, reading),))
    if "train" not in loaded:
        raise InputError(
            f"{name} has no split train; its splits are {', '.join(loaded) or 'none'}. Name one with :SPLIT"
        )
    held_out = next((split for split in HELD_OUT if split in loaded), None)
    rest = held_out and Source(f"{name}:{held_out}", (Split(f"{name}:{held_out}", loaded[held_out], reading),))
    return Source(name, (Split(f"{name}:train", loaded["train"], reading),), rest or None)


def _package(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source} needs Hugging Face's datasets: pip install 'jaxgpt[datasets]'") from None
    return datasets


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
