"""Decoding on the device: the prompts in one pass, then a token at a time over cached keys and values.

Two programs, each compiled once for a shape of prompts, a number of slots and a chain of samplers.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgpt.generation.sampling import Sampler, draw
from jaxgpt.loss import mask_padding
from jaxgpt.model.cache import Cache, empty_cache
from jaxgpt.model.gpt import GPT

NO_TOKEN = -1
"""The id that is added where a logit is NaN or infinite."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """The state of decoding, from token to token."""

    cache: Cache
    added: Int[Array, "B R"]
    """The new tokens, and room for the rest."""
    count: Int[Array, ""]
    """Number of tokens that were added to each row."""
    token: Int[Array, " B"]
    """The last that was added, which the cache has not seen."""
    ended: Bool[Array, " B"]
    """Rows to which only the end token is added any more."""
    seen: Bool[Array, "B V"] | None
    """Tokens that each row holds, for samplers that ask."""
    key: Array


@partial(jax.jit, static_argnames=("room", "num_samples", "remember"))
def prefill(
    model: GPT,
    prompts: Int[Array, "P T"],
    start: Int[Array, " P"],
    key: Array,
    samplers: tuple[Sampler, ...],
    eos_ids: Int[Array, " E"],
    *,
    room: int,
    num_samples: int,
    remember: bool,
) -> Decoding:
    """Read the prompts, each of which begins at its slot `start`, and add a first token.

    Args:
        eos_ids: the end tokens; -1: none.
        room: slots for new tokens.
        num_samples: rows for each prompt, side by side: B = P * num_samples.
        remember: whether a sampler asks which tokens a row holds.
    """
    logits, cache = model.step(prompts, empty_cache(model.config, start, prompts.shape[1] + room, model.dtype))
    P, V = logits.shape
    seen = None
    if remember:
        real = jnp.arange(prompts.shape[1])[None] >= start[:, None]
        seen = jnp.zeros((P, V), bool).at[jnp.arange(P)[:, None], prompts].max(real)
    logits, cache, seen = jax.tree.map(
        lambda x: jnp.repeat(x, num_samples, axis=0) if x.ndim else x, (logits, cache, seen)
    )
    nothing = jnp.zeros(logits.shape[0], jnp.int32)
    added = jnp.full((logits.shape[0], room), eos_ids[0], jnp.int32)
    state = Decoding(cache, added, jnp.int32(0), nothing, nothing > 0, seen, key)
    return _add(model, state, logits, samplers, eos_ids)


@partial(jax.jit, donate_argnames="state")
def decode(
    model: GPT, state: Decoding, samplers: tuple[Sampler, ...], eos_ids: Int[Array, " E"], until: Int[Array, ""]
) -> Decoding:
    """Add tokens until every row has `until` of them, or has ended."""

    def step(state):
        logits, cache = model.step(state.token[:, None], state.cache)
        return _add(model, replace(state, cache=cache), logits, samplers, eos_ids)

    return jax.lax.while_loop(lambda state: (state.count < until) & ~state.ended.all(), step, state)


def _add(model: GPT, state: Decoding, logits: Float[Array, "B V"], samplers, eos_ids) -> Decoding:
    key = jax.random.fold_in(state.key, state.count)
    token = draw(samplers, mask_padding(logits, model.config), state.seen, key)
    token = jnp.where(jnp.isfinite(logits).all(axis=-1), token, NO_TOKEN)
    token = jnp.where(state.ended, jnp.maximum(eos_ids[0], 0), token)
    seen = None if state.seen is None else state.seen.at[jnp.arange(token.shape[0]), token].set(True)
    added = jax.lax.dynamic_update_slice(state.added, token[:, None], (jnp.zeros_like(state.count), state.count))
    return Decoding(state.cache, added, state.count + 1, token, state.ended | jnp.isin(token, eos_ids), seen, state.key)
