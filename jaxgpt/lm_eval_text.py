"""Texts as the evaluation harness asks for them: its gen_kwargs, its end of a text."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from jaxgpt.convert.errors import InputError
from jaxgpt.generation.generate import Stream
from jaxgpt.generation.sampling import Sampler, make_samplers
from jaxgpt.model.gpt import GPT


@dataclass(frozen=True)
class GenerationSettings:
    """A request's gen_kwargs."""

    new: int
    """Tokens to add at most."""
    stop: list[str]
    """A text ends before the first of these; the end token's name is one of them."""
    samplers: tuple[Sampler, ...]


def read_settings(gen_kwargs: dict[str, Any], *, end: str, default: int, limit: int) -> GenerationSettings:
    """Return the settings of a request.

    Draws are among all tokens unless top_k says otherwise; transformers draws among the 50 likeliest.

    Args:
        end: the name of the end token.
        default: tokens to add at most, unless gen_kwargs say how many.
        limit: tokens that the model reads at most; one at least is the prompt's.

    Raises:
        InputError: a setting that is unknown or out of its bounds; none is ignored.
    """
    asked: dict[str, Any] = {**normalize_gen_kwargs(gen_kwargs, default)}
    stop, new = handle_stop_sequences(asked.pop("until"), eos=end), asked.pop("max_gen_toks")
    draws, temperature = asked.pop("do_sample"), asked.pop("temperature", 0.0)
    if asked.get("num_beams") == 1:
        del asked["num_beams"]
    if unknown := asked.keys() - {"top_k", "top_p", "min_p", "repetition_penalty"}:
        raise InputError(f"gen_kwargs: jaxgpt has no {', '.join(sorted(unknown))}")
    if not all(stop):
        raise InputError("gen_kwargs: a stop string must not be empty")
    if not 1 <= new < limit:
        raise InputError(
            f"gen_kwargs: max_gen_toks must be from 1 to {limit - 1} (which leaves room for a prompt), not {new}"
        )
    if draws and not temperature:
        raise InputError("gen_kwargs: do_sample=True needs a temperature above 0")
    if not draws:
        asked = {name: value for name, value in asked.items() if name == "repetition_penalty"}
    if asked.get("top_k") == 0:  # transformers' way to say all
        del asked["top_k"]
    return GenerationSettings(new, stop, make_samplers(float(temperature) if draws else 0.0, **asked))


def write(
    model: GPT,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    n_rows: int,
    seed: int,
) -> list[str]:
    """Write the texts that follow the first `n_rows` prompts; the others only fill the batch up.

    Unlike `jaxgpt.generation.text.write`, the new tokens are decoded without the prompt's and without special tokens.
    """
    ends = model.config.end_ids
    stream = Stream(
        model, prompts, max_new_tokens=settings.new, samplers=settings.samplers, seed=seed, eos_id=ends, every=8
    )
    rows: list[list[int]] = [[] for _ in range(n_rows)]

    def ended(ids: list[int]) -> bool:
        text = tokenizer.decode(ids)
        return not set(ends).isdisjoint(ids) or any(string in text for string in settings.stop)

    for new in stream:
        for ids, more in zip(rows, new[:n_rows].tolist(), strict=True):
            ids += more
        stream.end(np.asarray([i >= n_rows or ended(rows[i]) for i in range(len(prompts))]))
    # each up to the token that ended it: what follows depends on how long the others of the batch are
    rows = [ids[: bisect.bisect_left(range(len(ids)), True, key=lambda n: ended(ids[:n]))] for ids in rows]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]
    return [postprocess_generated_text(text, settings.stop, None) for text in texts]
