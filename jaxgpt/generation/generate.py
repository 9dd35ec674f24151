"""Text from a model, as token ids: all at once, or as it comes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxgpt.arguments import check_ids, integer
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.generation.decode import NO_TOKEN, decode, prefill
from jaxgpt.generation.sampling import Greedy, RepetitionPenalty, Sampler, make_samplers
from jaxgpt.mesh import to_host
from jaxgpt.model.gpt import GPT

Prompts = Int[Array | np.ndarray, "B T"] | Sequence[Sequence[int]]


def generate(
    model: GPT,
    tokens: Prompts,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    eos_id: int | Sequence[int] | None = None,
    num_samples: int = 1,
) -> Int[np.ndarray, "B*num_samples T+new"] | list[Int[np.ndarray, " T+new"]]:
    """Return the prompts, each followed by new tokens: by default the likeliest one each time.

    The command line draws instead, at temperature 0.8 among the 40 likeliest tokens: pass `temperature=0.8, top_k=40`
    for texts like its own.

    Prompts of one length, as an array, give an array, in which after `eos_id` only `eos_id` follows. Prompts of any
    lengths, as a list of lists, give a list, in which each row ends with its first new `eos_id`.

    Args:
        max_new_tokens: how many to add.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        top_k: draw among the k likeliest only; each k is a program of its own, and compiles.
        top_p: draw among the fewest tokens whose probabilities sum to at least this.
        min_p: draw among tokens that have at least this share of the likeliest one's probability.
        repetition_penalty: above 1, tokens that the text already holds become less likely; 1 has no effect.
        seed: of the draws; equal seeds give equal texts, whatever other rows there are.
        eos_id: the end token, or several.
        num_samples: rows for each prompt, side by side; the prompt is read once.

    Raises:
        InputError: an empty prompt, ids that are no token of the model's, more tokens than its context, or a model
            whose logits are not finite.
    """
    samplers = make_samplers(temperature, top_k, top_p, min_p, repetition_penalty)
    stream = Stream(
        model,
        tokens,
        max_new_tokens=max_new_tokens,
        samplers=samplers,
        seed=seed,
        eos_id=eos_id,
        num_samples=num_samples,
        every=max_new_tokens,
    )
    added = np.concatenate([np.zeros((len(stream.prompts), 0), np.int32), *stream], axis=1)
    if isinstance(tokens, (jax.Array, np.ndarray)):
        padding = np.full((len(added), max_new_tokens - added.shape[1]), max(stream.ends[0], 0), np.int32)
        return np.concatenate([np.stack(stream.prompts), added, padding], axis=1)
    ends = [np.flatnonzero(np.isin(row, stream.ends))[:1] + 1 for row in added]
    return [
        np.concatenate([prompt, row[: end[0] if end.size else None]])
        for prompt, row, end in zip(stream.prompts, added, ends, strict=True)
    ]


class Stream:
    """New tokens as they come: an iterator over arrays (B, n), with `num_samples` rows for each prompt.

    The device adds `every` tokens between two looks of the host, the first at once. It goes on until all rows have
    ended, by `eos_id` or by `end`; what rows hold after that means nothing. See `generate` for the rest.
    """

    def __init__(
        self,
        model: GPT,
        tokens: Prompts,
        *,
        max_new_tokens: int,
        samplers: tuple[Sampler, ...] = (Greedy(),),
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
        num_samples: int = 1,
        every: int = 8,
    ):
        prompts, config = _rows(tokens, model.config), model.config
        longest = max(map(len, prompts))
        room = config.n_positions - longest
        max_new_tokens = integer("max_new_tokens", max_new_tokens, -(2**31))
        if not 0 <= max_new_tokens <= room:
            where = f"the prompt has {longest} tokens, the context {config.n_positions}"
            raise InputError(f"max_new_tokens must be from 0 to {max(room, 0)}, not {max_new_tokens}: {where}")
        seed, num_samples = integer("seed", seed, 0, 2**32 - 1), integer("num_samples", num_samples, 1)
        several = eos_id if isinstance(eos_id, (list, tuple)) else [] if eos_id is None else [eos_id]
        self.ends = np.asarray([integer("eos_id", end, 0) for end in several] or [-1], np.int32)
        """The end tokens; -1: none."""
        self.prompts = [prompt for prompt in prompts for _ in range(num_samples)]
        """The prompt of each row."""
        self._new, self._every = max_new_tokens, every
        width = _bucket(longest)
        self._start = partial(
            prefill,
            model,
            np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in prompts]),
            np.asarray([width - len(prompt) for prompt in prompts], np.int32),
            jax.random.key(seed),
            samplers,
            self.ends,
            room=_bucket(max_new_tokens),
            num_samples=num_samples,
            remember=any(isinstance(sampler, RepetitionPenalty) for sampler in samplers),
        )
        self._go_on = partial(decode, model, samplers=samplers, eos_ids=self.ends)
        self._ended = np.zeros(len(self.prompts), bool)

    def __iter__(self) -> Iterator[Int[np.ndarray, "B n"]]:
        if not self._new:
            return
        state, shown = self._start(), 0
        while True:
            count = int(state.count)
            new = to_host(state.added)[:, shown:count]  # cut on the host: each cut would be a program on the device
            if (new == NO_TOKEN).any():
                raise InputError(
                    "the model's logits are not finite: its weights are not finite, or so large that the logits "
                    "overflow; see jaxgpt check"
                )
            yield new
            state, shown = replace(state, ended=state.ended | self._ended), count
            if count == self._new or bool(state.ended.all()):
                return
            state = self._go_on(state, until=np.int32(min(count + self._every, self._new)))

    def end(self, rows: Bool[np.ndarray, " B"]) -> None:
        """End these rows: they need no more tokens."""
        self._ended |= rows


def _rows(tokens: Prompts, config: GPTConfig) -> list[Int[np.ndarray, " T"]]:
    if isinstance(tokens, (jax.Array, np.ndarray)):
        tokens = np.asarray(tokens)
        if tokens.ndim != 2:
            raise InputError(f"prompts must be a non-empty (B, T) array of token ids, not of shape {tokens.shape}")
    try:
        rows = [np.asarray(row) for row in tokens]
    except (TypeError, ValueError):  # not iterable, or lists of unequal depth
        raise InputError("prompts must be an array (B, T) of token ids, or a list of lists of them") from None
    if not rows or not all(row.ndim == 1 and row.size for row in rows):
        raise InputError("prompts must be a non-empty (B, T) array of token ids, or a list of non-empty lists of them")
    if other := [row.dtype for row in rows if not np.issubdtype(row.dtype, np.integer)]:
        raise InputError(f"prompts must be integers, not {other[0]}")
    for row in rows:
        check_ids(row, config.n_tokens, "prompt ids")
    return [row.astype(np.int32) for row in rows]


def _bucket(length: int) -> int:
    """Return the length that a program is compiled for: 16, 32, 64, and then multiples of 64."""
    return next((size for size in (16, 32) if length <= size), -(-length // 64) * 64)
