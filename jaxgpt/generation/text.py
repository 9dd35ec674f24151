"""Text that a model writes after prompts, as strings: pieces as they come, up to the end token or a stop string."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxgpt.convert.errors import InputError
from jaxgpt.generation.generate import Stream
from jaxgpt.generation.sampling import Greedy, Sampler
from jaxgpt.model.gpt import GPT
from jaxgpt.tokenizer import stop_ids


def write(
    model: GPT,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    samplers: tuple[Sampler, ...] = (Greedy(),),
    stop: Sequence[str] = (),
    seed: int = 0,
    num_samples: int = 1,
) -> Iterator[list[str]]:
    """Write texts after the prompts, and return their pieces as they come, one for each row.

    A text ends before an end token (`jaxgpt.tokenizer.stop_ids`) or a stop string.

    A piece is given when nothing that comes later can change it: halves of characters and beginnings of stop strings
    are held back.

    Args:
        prompts: token ids; `num_samples` rows follow each, side by side.

    Raises:
        InputError: an empty stop string, or what `Stream` refuses.
    """
    if isinstance(stop, str) or not all(stop):
        raise InputError("stop must be a list of strings, none of them empty")
    ends = stop_ids(model.config, tokenizer)
    stream = Stream(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        samplers=samplers,
        seed=seed,
        eos_id=ends,
        num_samples=num_samples,
    )
    texts = [Text(tokenizer, prompt, stop, ends) for prompt in stream.prompts]
    return _pieces(stream, texts)


def _pieces(stream: Stream, texts: list["Text"]) -> Iterator[list[str]]:
    for new in stream:
        yield [text.add(row) for text, row in zip(texts, new, strict=True)]
        stream.end(np.asarray([text.ended for text in texts]))
    yield [text.rest() for text in texts]


class Text:
    """The text after one prompt, from tokens as they come."""

    def __init__(self, tokenizer: Any, prompt: Int[np.ndarray, " T"], stop: Sequence[str], ends: Sequence[int]):
        self._decode = tokenizer.decode
        self._ids, self._stop, self._ends = [int(i) for i in prompt], stop, ends
        self._skip, self._given = len(self._decode(self._ids)), ""
        self.ended = False
        """True when the text has reached the end token or a stop string."""

    def add(self, new: Int[np.ndarray, " n"]) -> str:
        """Return the next piece; nothing once the text has ended."""
        if self.ended:
            return ""
        ids = [int(i) for i in new]
        if places := [i for i, token in enumerate(ids) if token in self._ends]:
            ids, self.ended = ids[: places[0]], True
        self._ids += ids
        text = self._decode(self._ids)[self._skip :]
        if stops := [place for stop in self._stop if (place := text.find(stop)) >= 0]:
            text, self.ended = text[: min(stops)], True
        elif not self.ended:
            text = text[: len(text) - self._uncertain(text)]
        return self._piece(text)

    def rest(self) -> str:
        """Return what was held back, when nothing more comes."""
        return "" if self.ended else self._piece(self._decode(self._ids)[self._skip :])

    def _uncertain(self, text: str) -> int:
        """Count the characters at the end that later tokens may change: part of a character, or of a stop string."""
        held = len(text) - len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        for stop in self._stop:
            held = max(held, *(n for n in range(len(stop)) if text.endswith(stop[:n])))
        return held

    def _piece(self, text: str) -> str:
        piece, self._given = text[len(self._given) :], text
        return piece
