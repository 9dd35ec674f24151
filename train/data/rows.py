"""Random access to the rows that batches are made of, as Grain sources."""

from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from jaxgpt.arguments import TokenIds
from jaxgpt.training.data.packing import Pieces

RowArrays = dict[str, np.ndarray]
"""The fields of a `Batch`, of one row without B: tokens (T + 1), weights (T) and, if packed, segments (T + 1)."""


class Rows(Protocol):
    """A row for each number below the length."""

    n_tokens: int
    """Number of tokens of all rows, without padding."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> RowArrays: ...

    def begins(self, i: int) -> list[int]:
        """Where in the corpus the texts of a row begin; of a window, its first token and its last."""
        ...


class Windows:
    """Texts in one stream, cut into windows of T + 1 tokens that overlap by one: each token is predicted once.

    Args:
        tail: with a last window that is padded; without, what is no whole window is left out.
    """

    def __init__(self, tokens: TokenIds, begin: int, end: int, context: int, *, tail: bool = False):
        self._tokens, self._begin, self._end, self._context = tokens, begin, end, context
        self.n_tokens = end - begin
        self._length = -(-(self.n_tokens - 1) // context) if tail else (self.n_tokens - 1) // context

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> RowArrays:
        begin = self._begin + int(i) * self._context
        found = self._tokens[begin : min(begin + self._context + 1, self._end)]
        tokens, weights = np.zeros(self._context + 1, np.int32), np.zeros(self._context, np.float32)
        tokens[: len(found)], weights[: len(found) - 1] = found, 1
        return {"tokens": tokens, "weights": weights}

    def begins(self, i: int) -> list[int]:
        begin = self._begin + int(i) * self._context
        return [begin, min(begin + self._context, self._end - 1)]

    def __repr__(self) -> str:  # Grain names a source by it
        return f"Windows({len(self)} x {self._context})"


class Pairs:
    """Preferences: two texts, a better answer and a worse one, each padded to T + 1 tokens.

    Args:
        counts: 1 where a token of an answer counts.
        pieces: of these texts, better and worse in turn.
    """

    def __init__(self, tokens: TokenIds, counts: Int[np.ndarray, " n"], pieces: Pieces, context: int):
        self._packed = Packed(tokens, counts, pieces, [[i] for i in range(len(pieces.begins))], context)
        self.n_tokens, self.padding = self._packed.n_tokens, self._packed.padding if len(pieces.begins) else 0.0
        self.reference: Float[np.ndarray, "n 2"] | None = None
        """Log-likelihoods of the answers by the model that training began with, if they count."""

    def __len__(self) -> int:
        return len(self._packed) // 2

    def __getitem__(self, i: int) -> RowArrays:
        texts = [self._packed[2 * int(i) + j] for j in (0, 1)]
        row = {name: np.stack([text[name] for text in texts]) for name in ("tokens", "weights")}
        return row if self.reference is None else row | {"reference": self.reference[int(i)]}

    def begins(self, i: int) -> list[int]:
        return self._packed.begins(2 * int(i))

    def __repr__(self) -> str:
        return f"Pairs({len(self)})"


class Packed:
    """Whole texts, some to a row, none of which sees another.

    Args:
        counts: 1 where a token counts for the loss; all do if None.
        rows: which pieces each row holds.
    """

    def __init__(
        self,
        tokens: TokenIds,
        counts: Int[np.ndarray, " n"] | None,
        pieces: Pieces,
        rows: list[list[int]],
        context: int,
    ):
        self._tokens, self._counts, self._pieces, self._context = tokens, counts, pieces, context
        self._rows = rows
        self.n_tokens = int(pieces.lengths.sum())

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def padding(self) -> float:
        """Share of the rows that no token fills."""
        return 1 - self.n_tokens / (len(self) * (self._context + 1))

    def __getitem__(self, i: int) -> RowArrays:
        T = self._context
        tokens, segments, counts = np.zeros(T + 1, np.int32), np.zeros(T + 1, np.int32), np.zeros(T + 1, np.float32)
        at = 0
        for number, piece in enumerate(self._rows[int(i)], 1):
            begin, end = int(self._pieces.begins[piece]), int(self._pieces.ends[piece])
            here = slice(at, at + end - begin)
            tokens[here], segments[here] = self._tokens[begin:end], number
            counts[here] = 1 if self._counts is None else self._counts[begin:end]
            counts[at], at = 0, at + end - begin  # nothing predicts a text's first token
        return {"tokens": tokens, "weights": counts[1:], "segments": segments}

    def begins(self, i: int) -> list[int]:
        return [int(self._pieces.begins[piece]) for piece in self._rows[int(i)]]

    def __repr__(self) -> str:
        return f"Packed({len(self._pieces.begins)} in {len(self)} x {self._context})"
