"""Texts cut into pieces whose tokens, one after the other, are those of the whole text."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxgpt.convert.errors import InputError

PIECE = 2**16
"""Characters of a piece, at least: few enough that a batch keeps all cores busy, and takes little memory."""

CONTEXT = 256
"""Characters on both sides of a cut that are tokenised together and apart, at least."""

TRIES, DOUBTS = 4, 64
"""Places of a kind that are tried in a piece, and after how many failures alone a tokenizer counts as one that no text
can be cut for, such as one that begins every text with a space."""

LONGEST = 2**21
"""Bytes of a text without a good place to cut it, at most: a tokenizer takes some 140 bytes of memory for a token."""

LONGEST_UNCUT = 2**24
"""The same for a tokenizer that no text can be cut for, and a text that has words."""

LINE_END, SPACE = re.compile(r"(?<=\S)\n"), re.compile(r"(?<=\S) (?=\S)")

Encode = Callable[[str], list[int]]
"""The token ids of a text."""

EncodeAll = Callable[[list[str]], list[np.ndarray]]
"""The token ids of many texts, on all cores."""


def encoders(tokenizer: Any) -> tuple[Encode, EncodeAll]:
    """Return functions that encode as `tokenizer(text, add_special_tokens=False)` does, and make nothing else."""
    tokenizer("a", add_special_tokens=False, verbose=False)  # which switches truncation and padding off
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        call = lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
        return call, lambda texts: [np.asarray(ids, np.uint32) for ids in call(texts)]

    def encode_all(texts: list[str]) -> list[np.ndarray]:
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in found]

    # one text is encoded in the thread that asks: it would wait for the batch that all others are busy with
    return lambda text: backend.encode(text, add_special_tokens=False).ids, encode_all


class Cutter:
    """A cutter of texts: before line ends, or else single spaces, where that changes no token nearby."""

    def __init__(self, encode: Encode):
        self._encode, self._failures, self._cuts = encode, 0, False

    def pieces(self, parts: Iterable[str], name: str) -> Iterator[str]:
        """Cut a text that comes in parts into pieces; a text of white space alone has none.

        Raises:
            InputError: there is too much text without a place to cut it.
        """
        text, begin, tried = "", 0, 0
        for part in parts:
            text, begin, tried = text[begin:] + part, 0, tried - begin
            while (start := max(begin + PIECE, tried)) + PIECE + 4 * CONTEXT <= len(text):
                tried = start + PIECE
                cut = self._place(text, begin, start, tried)
                if cut is not None:
                    yield text[begin:cut]
                    begin = cut
                else:
                    self._check_length(text[begin:tried], name)
            self._check_length(text[begin:], name)
        if begin or text.strip():
            yield text[begin:]

    def _check_length(self, text: str, name: str) -> None:
        """Refuse a text that can't be cut and is too long to be tokenised at once."""
        is_never_cut = not self._cuts and self._failures >= DOUBTS
        most = LONGEST_UNCUT if is_never_cut else LONGEST
        if len(text) > most // 4 and len(text.encode()) > most:
            raise InputError(
                f"{name} has {most / 10**6:.1f} MB without a point where this tokenizer can split it: split it into "
                "several documents"
            )

    def _place(self, text: str, begin: int, start: int, stop: int) -> int | None:
        """Return where to cut between start and stop, or None."""
        for pattern in (LINE_END, SPACE):
            for i, match in enumerate(pattern.finditer(text, start, stop)):
                if i == TRIES or (not self._cuts and self._failures >= DOUBTS):
                    break
                if self._is_seam(text, begin, match.start()):
                    self._cuts = True
                    return match.start()
                self._failures += 1
        return None

    def _is_seam(self, text: str, begin: int, cut: int) -> bool:
        """Return whether the tokens of the text around a cut are those of its two sides.

        That text begins and ends at spaces, if there are any.
        """
        left, right = max(begin, cut - CONTEXT), min(len(text), cut + CONTEXT)
        before = list(SPACE.finditer(text, max(begin, left - 2 * CONTEXT), left))
        after = SPACE.search(text, right, right + 2 * CONTEXT)
        left, right = before[-1].start() if before else left, after.start() if after else right
        return self._encode(text[left:right]) == self._encode(text[left:cut]) + self._encode(text[cut:right])
