"""From text to batches: read, tokenise, hold a tail out, and cut the rest into windows that Grain shuffles."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Int

from convert.errors import InputError
from jaxgpt.corpus import tokenise
from jaxgpt.documents import Texts
from jaxgpt.sources import Source

HELD_OUT, MOST_HELD_OUT = 0.1, 65_536
"""Fraction of the tokens that is held out for evaluation, and the most tokens that are."""

Tokens = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Data:
    """Tokenised text, in the two parts that training and evaluation see."""

    source: str
    train: Tokens
    held_out: Tokens

    @property
    def digest(self) -> str:
        """Changes when the text, the tokenizer or the split does."""
        return hashlib.sha256(self.train.tobytes() + b"|" + self.held_out.tobytes()).hexdigest()


def load_data(source: Path | None, tokenizer: Any, context: int) -> Data:
    """The tokens of a text file, a folder of them, or Python's own language reference.

    Raises:
        InputError: there is no text, it is not UTF-8, or it is shorter than one window.
    """
    if source is None:
        name = "the Python language reference"
        corpus = tokenise(Source(name, (Texts(name, _python_reference()),)), tokenizer)
    else:
        corpus = tokenise(source, tokenizer)
        name = corpus.name
    tokens = corpus.tokens
    held_out = min(int(len(tokens) * HELD_OUT), MOST_HELD_OUT)
    train = len(tokens) - held_out
    if train < context + 1 or held_out < 2:
        raise InputError(
            f"--data: {name} has {len(tokens):,} tokens, of which {train:,} are for training: "
            f"too few for one context of {context} and the token after it; give more text or a smaller --context"
        )
    return Data(name, tokens[:train], tokens[train:])


def train_batches(data: Data, context: int, batch_size: int, seed: int) -> grain.MapDataset:
    """Shuffled batches `(B, T + 1)` without end; an epoch predicts every token once. Batch `i` is `ds[i]`."""
    source = grain.MapDataset.source(Windows(data.train, context))
    return source.seed(seed).shuffle().repeat().batch(batch_size, drop_remainder=True)


def eval_batches(
    data: Data, context: int, batch_size: int
) -> list[tuple[Int[np.ndarray, "B T+1"], Float[np.ndarray, "B T"]]]:
    """The held-out text in order, each token predicted once, with weights that are 0 where rows are padded."""
    tokens = data.held_out
    windows = math.ceil((len(tokens) - 1) / context)
    rows = math.ceil(windows / batch_size) * batch_size
    ids, weights = np.zeros((rows, context + 1), np.int32), np.zeros((rows, context), np.float32)
    for row in range(windows):
        window = tokens[row * context : (row + 1) * context + 1]
        ids[row, : len(window)] = window
        weights[row, : len(window) - 1] = 1
    return [(ids[i : i + batch_size], weights[i : i + batch_size]) for i in range(0, rows, batch_size)]


class Windows:
    """Random access to windows of T + 1 tokens that overlap by one, as a Grain source."""

    def __init__(self, tokens: Tokens, context: int):
        self._tokens, self._context = tokens, context

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._context

    def __getitem__(self, i: int) -> Int[np.ndarray, " T+1"]:
        return self._tokens[int(i) * self._context :][: self._context + 1].astype(np.int32)

    def __repr__(self) -> str:
        return f"Windows({len(self)} x {self._context})"


def _python_reference() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]
