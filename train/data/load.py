"""From sources to rows: tokenise, hold a part out, and make rows of the rest."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import InputError, about
from jaxgpt.data.corpus import Corpus, tokenise
from jaxgpt.data.documents import Source, Texts
from jaxgpt.data.sources import check_text_field, find
from jaxgpt.training.data.packing import make_pairs, make_pieces, pack
from jaxgpt.training.data.rows import Packed, Pairs, Rows, Windows
from jaxgpt.training.run.run_json import DataInfo
from jaxgpt.training.settings import Settings

HELD_OUT, MOST_HELD_OUT = 0.1, 65_536
"""The fraction that is held out for evaluation, and the most tokens that are."""


@dataclass(frozen=True)
class Sources:
    """The sources that --data and --eval-data name, found once: each look at a remote one takes a round trip."""

    train: Source
    held_out: Source | None = None


@dataclass(frozen=True)
class DataPart:
    """The rows that training or evaluation sees."""

    corpus: Corpus
    rows: Rows
    notes: tuple[str, ...] = ()
    """Remarks: what was cut or left out, and how full the rows are."""

    @property
    def usual_rows(self) -> str:
        """The content of a row where nothing else is asked for, as `--rows` has it."""
        return {"text": "stream", "chat": "packed"}.get(self.corpus.kind, "pairs")

    def origins(self, row: int) -> list[str]:
        """Return where the texts of a row come from."""
        return [self.corpus.origin(position) for position in self.rows.begins(row)]


@dataclass(frozen=True)
class TrainingData:
    """Both parts."""

    train: DataPart
    held_out: DataPart
    info: DataInfo
    """Their entry in run.json; a resumed run must have the same data again."""

    @property
    def name(self) -> str:
        return self.train.corpus.name

    @property
    def remarks(self) -> list[str]:
        """The parts of the records that are not in the tokens: unread fields, bad records; each once."""
        held_out = self.held_out.corpus
        others = [] if held_out is self.train.corpus else [f"held out: {text}" for text in held_out.remarks]
        return [*self.train.corpus.remarks, *others]


def find_sources(settings: Settings) -> Sources:
    """Find what --data and --eval-data name; without --data, the language reference that comes with Python.

    Raises:
        InputError: one of them is not there.
    """
    if settings.data is None:
        from pydoc_data.topics import topics

        name = "the Python language reference"
        train = Source(name, (Texts(name, [topics[topic] for topic in sorted(topics)]),))
    else:
        with about("--data"):
            train = _find(settings.data, settings)
    held_out = None
    if settings.eval_data is not None:
        with about("--eval-data"):
            held_out = _find(settings.eval_data, settings)
    check_text_field(settings.text_field, train, held_out)
    return Sources(train, held_out)


def _find(source: str, settings: Settings) -> Source:
    if "://" not in source and (local_path(source) / "run.json").is_file():
        raise InputError(f"{source} is a training run, not data: give it as --model, or resume it with --resume")
    return find(
        source, text_field=settings.text_field, skip_bad_records=settings.skip_bad_records,
        preferences=settings.objective != "next-token",
    )  # fmt: skip


def load_data(settings: Settings, tokenizer: Any, context: int, sources: Sources | None = None) -> TrainingData:
    """Return the tokens of --data in rows, and the held-out part in rows of its own.

    Raises:
        InputError: there is no text, it can't be read, or it is too short.
    """
    sources = find_sources(settings) if sources is None else sources
    with about("--data"):
        corpus = tokenise(sources.train, tokenizer, cache=settings.cache, progress=True)
    held_out = corpus.held_out
    if sources.held_out is not None:
        with about("--eval-data"):
            held_out = tokenise(sources.held_out, tokenizer, cache=settings.cache, progress=True)
    has_pairs = corpus.kind.endswith("pairs")
    if has_pairs != (settings.objective != "next-token") or (has_pairs and held_out and held_out.kind != corpus.kind):
        raise InputError(
            f"--objective={settings.objective} learns from records with prompt, chosen and rejected, not from "
            f"{corpus.name}"
        )
    is_packed = has_pairs or (settings.rows != "stream" and (corpus.kind == "chat" or settings.rows is not None))
    if settings.rows == "stream" and corpus.kind == "chat":
        raise InputError("--rows=stream cuts texts anywhere, which conversations don't allow: use packed or padded")
    end = len(corpus.tokens)
    begin = end if held_out else _split(corpus, is_packed, context)
    make = _pairs if has_pairs else _packed if is_packed else _windows
    train = make(corpus, 0, begin, settings, context, False)
    held_out_range = (held_out, 0, len(held_out.tokens)) if held_out else (corpus, begin, end)
    evaluation = make(*held_out_range, settings, context, True)
    flag = "--data" if sources.held_out is None else "--eval-data"
    _check_rows(train, "for training", "--data", context)
    _check_rows(evaluation, "held out", flag, context)
    info = DataInfo(
        source=corpus.name,
        kind=corpus.kind,
        sha256=corpus.digest,
        held_out_sha256=held_out.digest if held_out else None,
        tokenizer=corpus.tokenizer_digest,
        train=train.rows.n_tokens,
        held_out=evaluation.rows.n_tokens,
        rows=len(train.rows),
        notes=list(train.notes),
    )
    data = TrainingData(train, evaluation, info)
    return replace(data, info=replace(info, notes=[*data.remarks, *info.notes]))


def _check_rows(part: DataPart, what: str, flag: str, context: int) -> None:
    """Refuse a part without a single row."""
    if len(part.rows):
        return
    if part.notes:
        raise InputError(f"--context: no text {what} fits into it; {'; '.join(part.notes)}: try a larger --context")
    n_tokens = len(part.corpus.tokens)
    raise InputError(_too_few(flag, part.corpus.name, n_tokens, part.rows.n_tokens, what, context))


def _too_few(flag: str, name: str, n_tokens: int, n_used: int, what: str, context: int) -> str:
    return (
        f"{flag}: {name} has {n_tokens:,} tokens, of which {n_used:,} are {what}: too few for one context of {context} "
        "and the token after it; give more text or a smaller --context"
    )


def _split(corpus: Corpus, is_packed: bool, context: int) -> int:
    """Return where the held-out part begins: for packed rows at the beginning of a document."""
    n = len(corpus.tokens)
    begin = n - min(int(n * HELD_OUT), MOST_HELD_OUT)
    if not is_packed:
        if n - begin < 2 or begin < context + 1:
            raise InputError(_too_few("--data", corpus.name, n, begin, "for training", context))
        return begin
    size = 2 if corpus.kind.endswith("pairs") else 1
    if len(corpus.ends) < 2 * size:
        raise InputError(
            f"--data: {corpus.name} holds a single text, so that nothing is left to hold out for evaluation: "
            "give more, or another file as --eval-data"
        )
    first = min(int(np.searchsorted(corpus.ends, begin)) + 1, len(corpus.ends) - size)
    return int(corpus.ends[max(first - first % size, size) - 1])


def _windows(corpus: Corpus, begin: int, end: int, settings: Settings, context: int, tail: bool) -> DataPart:
    return DataPart(corpus, Windows(corpus.tokens, begin, end, context, tail=tail))


def _pairs(corpus: Corpus, begin: int, end: int, settings: Settings, context: int, tail: bool) -> DataPart:
    first, last = (int(np.searchsorted(corpus.ends, position, side="right")) for position in (begin, end))
    pieces = make_pairs(corpus, range(first, last), context + 1)
    assert corpus.counts is not None
    pairs, n, notes = Pairs(corpus.tokens, corpus.counts, pieces, context), (last - first) // 2, []
    if pieces.left_out:
        notes.append(
            f"{pieces.left_out:,} of {n:,} preferences are LEFT OUT: an answer with its prompt has more than "
            f"{context + 1:,} tokens"
        )
    if len(pairs):
        notes.append(f"{len(pairs):,} preferences in rows of 2 x {context}: {pairs.padding:.1%} is padding")
    return DataPart(corpus, pairs, tuple(notes))


def _packed(corpus: Corpus, begin: int, end: int, settings: Settings, context: int, tail: bool) -> DataPart:
    first, last = (int(np.searchsorted(corpus.ends, position, side="right")) for position in (begin, end))
    pieces = make_pieces(corpus, range(first, last), context + 1)
    rows = [[i] for i in range(len(pieces.begins))]
    if settings.rows != "padded":
        rows = pack(pieces.lengths, context + 1, settings.seed)
    counts = corpus.counts if settings.train_on == "assistant" else None
    packed = Packed(corpus.tokens, counts, pieces, rows, context)
    notes = []
    if corpus.kind == "chat":
        if pieces.cut:
            notes.append(f"{pieces.cut:,} of {last - first:,} conversations are cut after a turn, to fit the context")
        if pieces.left_out:
            notes.append(
                f"{pieces.left_out:,} of {last - first:,} conversations are LEFT OUT: their first turn that counts in "
                f"the loss ends beyond the context of {context}"
            )
    if rows:
        what = "conversations" if corpus.kind == "chat" else "documents"
        notes.append(f"{last - first:,} {what} in {len(rows):,} rows of {context}: {packed.padding:.1%} is padding")
    return DataPart(corpus, packed, tuple(notes))
