"""A source in tokens: mapped into memory from a cache on disk, or read from a file of token ids as it is."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from jaxgpt.convert.disk import target_path
from jaxgpt.convert.errors import InputError
from jaxgpt.data.documents import Kind, Source
from jaxgpt.data.sources import find
from jaxgpt.data.streams import is_remote
from jaxgpt.data.token_files import VERSION, default_cache, find_or_write
from jaxgpt.data.token_ids import TokenFile, token_format
from jaxgpt.data.tokenise import ReadingProgress, write_tokens
from jaxgpt.tokenizer import fingerprint, vocabulary_size


@dataclass(frozen=True)
class Corpus:
    """Documents in tokens, one after the other."""

    name: str
    kind: Kind
    """In pairs, the documents are a better answer and a worse one, in turn."""
    tokens: Int[np.ndarray, " n"] | TokenFile
    """uint16 or uint32, on disk until looked at; each text ends with the tokenizer's end of text, if it has one."""
    ends: Int[np.ndarray, " documents"]
    """Where each document ends: the position after its last token."""
    counts: UInt8[np.ndarray, " n"] | None
    """In conversations 1 where the assistant said a token, in pairs where an answer has one, else 0; None for texts."""
    digest: str
    """SHA-256 of the contents of the files in their order, not of their names."""
    tokenizer_digest: str
    held_out: "Corpus | None"
    """The part that the source itself holds out of training, if it has one."""
    n_bytes: int
    """Size of the text in UTF-8; 0 if it is unknown, as for token ids."""
    source: Source
    numbers: Int[np.ndarray, " documents"]
    """Number of each document in its file, from 1; 0: the file is the document."""
    file_ends: tuple[int, ...]
    """For each file, the number of documents up to its end."""
    all_turns: Int[np.ndarray, " turns"]
    turn_ends: Int[np.ndarray, " documents"]
    unread: str = ""
    """Which fields of records are not read, each with the number of records that have it; empty if none."""
    left_out: str = ""
    """How many bad records are left out, and why the first; empty if none."""
    as_text: str = ""
    """Which file is read as a text though it seems to hold records; empty if none."""

    @property
    def remarks(self) -> list[str]:
        """The parts of the source that are not in the tokens, in lines for a person."""
        return [text for text in (self.unread, self.left_out, self.as_text) if text]

    def turns(self, document: int) -> Int[np.ndarray, " turns"]:
        """Return the positions in `tokens` at which a conversation may be cut: after each message of the assistant."""
        if self.kind == "text":
            return np.empty(0, np.int64)
        return self.all_turns[self.turn_ends[document - 1] if document else 0 : self.turn_ends[document]]

    def origin(self, position: int) -> str:
        """Return where a token comes from, such as "data/a.jsonl, line 17"."""
        if not 0 <= position < len(self.tokens):
            raise IndexError(f"position {position} is not from 0 to {len(self.tokens) - 1}")
        document = int(np.searchsorted(self.ends, position, side="right"))
        file = int(np.searchsorted(self.file_ends, document, side="right"))
        return self.source.files[file].where(int(self.numbers[document]))


def tokenise(
    source: str | Path | Source,
    tokenizer: Any,
    *,
    cache: Path | None = None,
    progress: bool = False,
    text_field: str | None = None,
    skip_bad_records: bool = False,
) -> Corpus:
    """Return the tokens of a source, from the cache if it has them.

    Args:
        source: see `jaxgpt.data.sources.find`.
        cache: the folder of the cache; by default `jaxgpt/tokens` in $XDG_CACHE_HOME or ~/.cache.
        progress: a bar on standard error.
        text_field: see `find`, as for `skip_bad_records`; a `Source` that is given has its own.
        skip_bad_records: leave out records that can't be read.

    Raises:
        InputError: the source is empty or can't be read, or the cache can't be written.
    """
    found = find(source, text_field=text_field, skip_bad_records=skip_bad_records)
    digest = fingerprint(tokenizer)
    cache = target_path(default_cache() if cache is None else cache)
    held_out = None
    if found.held_out is not None:
        held_out = _tokenise(found.held_out, tokenizer, digest, cache, progress, None)
    return _tokenise(found, tokenizer, digest, cache, progress, held_out)


def _tokenise(
    source: Source, tokenizer: Any, tokenizer_digest: str, cache: Path, progress: bool, held_out: Corpus | None
) -> Corpus:
    stamps = [file.stamp for file in source.files]
    with ReadingProgress(source, "reading", progress) as bar:
        contents = [[f"{file.format}{file.compression}", file.sha256(bar.update)] for file in source.files]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    if source.files[0].format == "bin":
        return _token_ids(source, digest, tokenizer_digest, held_out)
    dtype = "<u2" if vocabulary_size(tokenizer) <= 2**16 else "<u4"
    reading = asdict(source.files[0].reading)
    if not reading["preferences"]:
        del reading["preferences"]  # as in entries of earlier versions
    settings = {"end": tokenizer.eos_token_id, "dtype": dtype, **reading}
    key = hashlib.sha256(json.dumps([VERSION, digest, tokenizer_digest, settings]).encode()).hexdigest()

    def write(writer: Any) -> dict[str, Any]:
        meta = write_tokens(source, tokenizer, writer, progress)
        for file, before in zip(source.files, stamps, strict=True):
            if file.stamp != before:
                raise InputError(f"{file.name} changed while being read: try again")
        for file, (_, sha256) in zip(meta["files"], contents, strict=True):
            file["sha256"] = sha256
        return meta | {"tokenizer": tokenizer_digest}

    meta, arrays = find_or_write(cache, key, dtype, write)
    return Corpus(
        name=source.name,
        kind=meta["kind"],
        tokens=arrays["tokens"],
        ends=arrays["ends"],
        counts=arrays.get("counts"),
        digest=digest,
        tokenizer_digest=tokenizer_digest,
        held_out=held_out,
        n_bytes=meta["bytes"],
        source=source,
        numbers=arrays["records"],
        file_ends=tuple(np.cumsum([file["documents"] for file in meta["files"]]).tolist()),
        all_turns=arrays.get("turns", np.empty(0, np.int64)),
        turn_ends=arrays.get("turn_ends", np.empty(0, np.int64)),
        unread=_describe_unread(meta["unread"]),
        left_out=_describe_bad(source, meta["n_bad"], meta["first_bad"]),
        as_text=_describe_as_text(source, meta["as_text"]),
    )


def _describe_unread(counts: dict[str, int]) -> str:
    """Return which fields are not read, the most frequent first."""
    names = sorted(filter(None, counts), key=lambda name: (-counts[name], name))
    shown = [f"{name!r} in {counts[name]:,} record{'s' * (counts[name] != 1)}" for name in names[:8]]
    more = [f"{len(names) - 8:,} more"] if len(names) > 8 else []
    more += ["others"] if "" in counts else []
    return f"fields that are not read: {', '.join(shown + more)}" if names else ""


def _describe_bad(source: Source, n: int, first: list[Any] | None) -> str:
    """Return how many bad records are left out, and which is the first."""
    if first is None:
        return ""
    file, number, problem = first
    count = f"{n:,} bad records are" if n > 1 else "1 bad record is"
    return f"{count} left out{'; the first' if n > 1 else ''}: {source.files[file].where(number)}: {problem}"


def _describe_as_text(source: Source, file: int | None) -> str:
    """Return which file is read as a text though it seems to hold records."""
    if file is None:
        return ""
    return (
        f"{source.files[file].name} is read as ONE TEXT, though its first line is a JSON object: if it holds records, "
        "let its name end in .jsonl"
    )


def _token_ids(source: Source, digest: str, tokenizer_digest: str, held_out: Corpus | None) -> Corpus:
    """Return token ids of nanoGPT or llm.c, as they are on disk."""
    file = source.files[0]
    if is_remote(file.path):
        raise InputError(
            f"{file.name}: a .bin file is read in parts and at random, so it must be on this machine: copy it first"
        )
    dtype, offset = token_format(file.name, file.path, file.size)
    if offset:
        digest = hashlib.sha256(json.dumps([digest, "llm.c"]).encode()).hexdigest()
    tokens, none = TokenFile(file.path, dtype, offset, file.stamp), np.empty(0, np.int64)
    return Corpus(
        name=source.name,
        kind="text",
        tokens=tokens,
        ends=np.asarray([len(tokens)]),
        counts=None,
        digest=digest,
        tokenizer_digest=tokenizer_digest,
        held_out=held_out,
        n_bytes=0,
        source=source,
        numbers=np.zeros(1, np.int64),
        file_ends=(1,),
        all_turns=none,
        turn_ends=none,
    )
