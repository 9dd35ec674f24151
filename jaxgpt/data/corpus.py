"""A source in tokens: mapped into memory from a cache on disk, or from nanoGPT's files as they are."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt8

from jaxgpt.convert.errors import InputError
from jaxgpt.data.documents import Source
from jaxgpt.data.sources import find
from jaxgpt.data.streams import is_remote
from jaxgpt.data.token_files import VERSION, default_cache, find_or_write
from jaxgpt.data.tokenise import ReadingProgress, write_tokens
from jaxgpt.tokenizer import fingerprint, vocabulary_size


@dataclass(frozen=True)
class Corpus:
    """Documents in tokens, one after the other."""

    name: str
    kind: Literal["text", "chat"]
    tokens: Int[np.ndarray, " n"]
    """uint16 or uint32, mapped into memory; each text ends with the tokenizer's end of text, if it has one."""
    ends: Int[np.ndarray, " documents"]
    """Where each document ends: the position after its last token."""
    counts: UInt8[np.ndarray, " n"] | None
    """In conversations 1 where the assistant said a token, else 0; None for texts."""
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

    def turns(self, document: int) -> Int[np.ndarray, " turns"]:
        """Return the positions in `tokens` at which a conversation may be cut: after each message of the assistant."""
        if self.kind == "text":
            return np.empty(0, np.int64)
        return self.all_turns[self.turn_ends[document - 1] if document else 0 : self.turn_ends[document]]

    def origin(self, position: int) -> str:
        """Return where a token comes from, such as "data/a.jsonl, line 17"."""
        if not 0 <= position < len(self.tokens):
            raise IndexError(f"{position} is not from 0 to {len(self.tokens) - 1}")
        document = int(np.searchsorted(self.ends, position, side="right"))
        file = int(np.searchsorted(self.file_ends, document, side="right"))
        return self.source.files[file].where(int(self.numbers[document]))


def tokenise(
    source: str | Path | Source, tokenizer: Any, *, cache: Path | None = None, progress: bool = False
) -> Corpus:
    """Return the tokens of a source, from the cache if it has them.

    Args:
        source: see `jaxgpt.data.sources.find`.
        cache: the folder of the cache; by default `jaxgpt/tokens` in $XDG_CACHE_HOME or ~/.cache.
        progress: a bar on standard error.

    Raises:
        InputError: the source is empty or can't be read, or the cache can't be written.
    """
    found, digest = find(source), fingerprint(tokenizer)
    cache = (default_cache() if cache is None else Path(cache)).expanduser()
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
    settings = {"end": tokenizer.eos_token_id, "dtype": dtype}
    key = hashlib.sha256(json.dumps([VERSION, digest, tokenizer_digest, settings]).encode()).hexdigest()

    def write(writer: Any) -> dict[str, Any]:
        meta = write_tokens(source, tokenizer, writer, progress)
        for file, stamp in zip(source.files, stamps, strict=True):
            if file.stamp != stamp:
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
    )


def _token_ids(source: Source, digest: str, tokenizer_digest: str, held_out: Corpus | None) -> Corpus:
    """Map nanoGPT's token ids, as they are on disk."""
    file = source.files[0]
    if is_remote(file.path):
        raise InputError(
            f"{file.name}: a .bin file is mapped into memory, so it must be on this machine: copy it first"
        )
    if not file.size or file.size % 2:
        n_bytes = f"{file.size:,} bytes, an odd number" if file.size else "0 bytes"
        raise InputError(f"{file.name} has {n_bytes}; a .bin holds token ids of two bytes each")
    tokens, none = np.memmap(file.path, "<u2", mode="r"), np.empty(0, np.int64)
    ends, numbers = np.asarray([len(tokens)]), np.zeros(1, np.int64)
    return Corpus(
        source.name,
        "text",
        tokens,
        ends,
        None,
        digest,
        tokenizer_digest,
        held_out,
        0,
        source,
        numbers,
        (1,),
        none,
        none,
    )
