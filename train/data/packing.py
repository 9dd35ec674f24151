"""Whole texts side by side in rows: pieces of documents that fit, and which of them share a row."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jaxgpt.data.corpus import Corpus


@dataclass(frozen=True)
class Pieces:
    """Parts of a corpus, each at most as long as a row, and what had to be cut for that."""

    begins: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " n"]
    cut: int = 0
    """Conversations that lost their last turns."""
    left_out: int = 0
    """Conversations whose first turn that counts ends too late, or texts of a single token."""

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        return self.ends - self.begins


def make_pieces(corpus: Corpus, documents: range, most: int) -> Pieces:
    """Return pieces of at most `most` tokens.

    A long text makes several, which overlap by one token so that each token is predicted once. A long conversation is
    cut after the last of the assistant's turns that fits.
    """
    begins, ends, cut, left_out = [], [], 0, 0
    for document in documents:
        begin = int(corpus.ends[document - 1]) if document else 0
        end = int(corpus.ends[document])
        if corpus.kind == "chat" and end - begin > most:
            fitting = [int(turn) for turn in corpus.turns(document) if turn - begin <= most]
            if not fitting:
                left_out += 1
                continue
            cut, end = cut + 1, fitting[-1]
        if end - begin < 2:
            left_out += 1
        while end - begin >= 2:
            begins.append(begin)
            ends.append(min(begin + most, end))
            begin += most - 1
    return Pieces(np.asarray(begins, np.int64), np.asarray(ends, np.int64), cut, left_out)


def make_pairs(corpus: Corpus, documents: range, most: int) -> Pieces:
    """Return pairs of documents, a better answer and a worse one in turn; pairs with a longer text are left out."""
    begins = np.r_[0, corpus.ends[:-1]][documents.start : documents.stop]
    ends = np.asarray(corpus.ends[documents.start : documents.stop])
    fits = np.repeat((ends - begins).reshape(-1, 2).max(1, initial=0) <= most, 2)
    return Pieces(begins[fits].astype(np.int64), ends[fits].astype(np.int64), left_out=int(np.sum(~fits)) // 2)


def pack(lengths: Int[np.ndarray, " n"], most: int, seed: int) -> list[list[int]]:
    """Return which pieces share a row of at most `most` tokens: best fit, the longest first.

    The seed decides among pieces of one length. Any piece is in exactly one row.
    """
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit r is set if a row has room for r tokens: the least room that suffices is one shift away
    for piece in order.tolist():
        length = int(lengths[piece])
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = most, len(rows)
            rows.append([])
        rows[row].append(piece)
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows
