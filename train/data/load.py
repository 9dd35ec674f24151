"""From a source to batches: tokenise, hold a part out, make rows of the rest, and let Grain shuffle them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from jaxgpt.convert.errors import InputError, about
from jaxgpt.data.corpus import Corpus, tokenise
from jaxgpt.data.documents import Source, Texts
from jaxgpt.data.sources import find
from jaxgpt.train.data.packing import make_pieces, pack
from jaxgpt.train.data.rows import Packed, Row, Rows, Windows
from jaxgpt.train.settings import Settings

HELD_OUT, MOST_HELD_OUT = 0.1, 65_536
"""Fraction that is held out for evaluation, and the most tokens that are."""


@dataclass(frozen=True)
class Part:
    """What training or evaluation sees."""

    corpus: Corpus
    rows: Rows
    notes: tuple[str, ...] = ()
    """What was cut or left out, and how full the rows are."""

    def origins(self, row: int) -> list[str]:
        """Where the texts of a row come from."""
        return [self.corpus.origin(position) for position in self.rows.begins(row)]


@dataclass(frozen=True)
class Data:
    """Both parts."""

    train: Part
    held_out: Part
    facts: dict[str, Any]
    """What `run.json` says of them, and a resumed run must have again."""

    @property
    def name(self) -> str:
        return self.train.corpus.name


def find_source(settings: Settings) -> str | Source:
    """What --data names; without it the language reference that comes with Python."""
    if settings.data is not None:
        return settings.data
    from pydoc_data.topics import topics

    name = "the Python language reference"
    return Source(name, (Texts(name, [topics[topic] for topic in sorted(topics)]),))


def look_for(flag: str, source: str | Source) -> None:
    """Refuse a source that is not there, before anything takes time.

    Raises:
        InputError: which names the flag.
    """
    with about(flag):
        find(source)


def load_data(settings: Settings, tokenizer: Any, context: int) -> Data:
    """The tokens of --data in rows, the held-out part in rows of its own.

    Raises:
        InputError: there is no text, it can't be read, or it is too short.
    """
    with about("--data"):
        corpus = tokenise(find_source(settings), tokenizer, cache=settings.cache, progress=True)
    held_out = corpus.held_out
    if settings.eval_data is not None:
        with about("--eval-data"):
            held_out = tokenise(settings.eval_data, tokenizer, cache=settings.cache, progress=True)
    packed = settings.rows != "stream" and (corpus.kind == "chat" or settings.rows is not None)
    if settings.rows == "stream" and corpus.kind == "chat":
        raise InputError("--rows=stream: conversations are not cut anywhere; use packed or padded")
    end = len(corpus.tokens)
    parts = [(corpus, 0, end if held_out else _split(corpus, packed, context))]
    parts.append((held_out, 0, len(held_out.tokens)) if held_out else (corpus, parts[0][2], end))
    make = _packed if packed else _windows
    train, evaluation = (make(*part, settings, context, i == 1) for i, part in enumerate(parts))
    for part, what in ((train, "for training"), (evaluation, "held out")):
        if not len(part.rows) and part.notes:
            raise InputError(f"--context: no text that is {what} fits; {'; '.join(part.notes)}: a larger one may help")
        if not len(part.rows):
            raise InputError(
                f"--data: {corpus.name} has {end:,} tokens, of which {part.rows.n_tokens:,} are {what}: too few for "
                f"one context of {context} and the token after it; give more text or a smaller --context"
            )
    facts = {
        "source": corpus.name,
        "kind": corpus.kind,
        "sha256": corpus.digest,
        "held_out_sha256": held_out.digest if held_out else None,
        "tokenizer": corpus.tokenizer_digest,
        "train": train.rows.n_tokens,
        "held_out": evaluation.rows.n_tokens,
        "rows": len(train.rows),
        "notes": list(train.notes),
    }
    return Data(train, evaluation, facts)


def _split(corpus: Corpus, packed: bool, context: int) -> int:
    """Position at which the held-out part begins: for packed rows the beginning of a document."""
    n = len(corpus.tokens)
    begin = n - min(int(n * HELD_OUT), MOST_HELD_OUT)
    if not packed:
        if n - begin < 2 or begin < context + 1:
            raise InputError(
                f"--data: {corpus.name} has {n:,} tokens, of which {begin:,} are for training: too few for one context "
                f"of {context} and the token after it; give more text or a smaller --context"
            )
        return begin
    if len(corpus.ends) < 2:
        raise InputError(
            f"--data: {corpus.name} has one document only, and none to hold out for evaluation: "
            "give more, or another file as --eval-data"
        )
    return int(corpus.ends[min(int(np.searchsorted(corpus.ends, begin)), len(corpus.ends) - 2)])


def _windows(corpus: Corpus, begin: int, end: int, settings: Settings, context: int, tail: bool) -> Part:
    return Part(corpus, Windows(corpus.tokens, begin, end, context, tail=tail))


def _packed(corpus: Corpus, begin: int, end: int, settings: Settings, context: int, tail: bool) -> Part:
    first, last = (int(np.searchsorted(corpus.ends, position, side="right")) for position in (begin, end))
    pieces = make_pieces(corpus, range(first, last), context + 1)
    rows = [[i] for i in range(len(pieces.begins))]
    if settings.rows != "padded":
        rows = pack(pieces.lengths, context + 1, settings.seed)
    counts = corpus.counts if settings.train_on == "assistant" else None
    packed, what = Packed(corpus.tokens, counts, pieces, rows, context), "documents"
    notes = []
    if corpus.kind == "chat":
        what = "conversations"
        if pieces.cut:
            notes.append(f"{pieces.cut:,} of {last - first:,} conversations are cut after a turn, to fit the context")
        if pieces.left_out:
            notes.append(
                f"{pieces.left_out:,} of {last - first:,} conversations are LEFT OUT: their first turn alone is longer "
                f"than the context of {context}"
            )
    if rows:
        notes.append(f"{last - first:,} {what} in {len(rows):,} rows of {context}: {packed.padding:.1%} is padding")
    return Part(corpus, packed, tuple(notes))


def train_batches(
    rows: Rows, batch_size: int, seed: int, own: Int[np.ndarray, " own"] | None = None
) -> grain.MapDataset:
    """Shuffled batches without end, as dictionaries; an epoch has every row once. Batch `i` is `ds[i]`.

    Args:
        own: which of a batch's rows are wanted, and read; all of them by default.
    """

    def read(numbers: Int[np.ndarray, " B"]) -> Row:
        return _stacked([rows[i] for i in (numbers if own is None else numbers[own])])

    return row_order(rows, seed).batch(batch_size, drop_remainder=True).map(read)


def row_order(rows: Rows, seed: int) -> grain.MapDataset:
    """The numbers of the rows in the order in which training sees them, without end."""
    return grain.MapDataset.source(range(len(rows))).seed(seed).shuffle().repeat()


def eval_batches(rows: Rows, batch_size: int, own: Int[np.ndarray, " own"] | None = None) -> Iterator[Row]:
    """All rows in order, as dictionaries; the last batch is filled up with rows that count nothing.

    Args:
        own: which of a batch's rows are wanted, and read; all of them by default.
    """
    own = np.arange(batch_size) if own is None else own
    for begin in range(0, len(rows), batch_size):
        numbers = begin + own
        found = [rows[i] for i in np.minimum(numbers, len(rows) - 1)]
        nothing = {name: np.zeros_like(x) for name, x in found[0].items()}
        yield _stacked([row if i < len(rows) else nothing for i, row in zip(numbers, found, strict=True)])


def _stacked(rows: list[Row]) -> Row:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
