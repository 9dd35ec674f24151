"""Text from a model: the prompt in one pass, then a token at a time over cached keys and values, on the device."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from convert.errors import InputError
from jaxgpt.cache import Cache, empty_cache
from jaxgpt.loss import mask_padding
from jaxgpt.model import GPT


def generate(
    model: GPT,
    tokens: Int[Array | np.ndarray, "B T"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_id: int | None = None,
) -> Int[Array, "B T+new"]:
    """The prompts, all of one length, each followed by `max_new_tokens` more; after `eos_id` only `eos_id` follows.

    Args:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        top_k: draw among the k likeliest only.
        top_p: draw among the fewest tokens whose probabilities sum to at least this.
        seed: of the draws; equal seeds give equal texts.

    Raises:
        InputError: an empty prompt, ids that are no token of the model's, or more tokens than its context.
    """
    prompt, config = np.asarray(tokens), model.config
    if prompt.ndim != 2 or prompt.size == 0:
        raise InputError(f"prompts must be a non-empty (B, T) array of token ids, not of shape {prompt.shape}")
    if not 0 <= prompt.min() <= prompt.max() < config.n_tokens:
        raise InputError(
            f"prompt ids reach from {prompt.min()} to {prompt.max()}; the model has {config.n_tokens} tokens"
        )
    room = config.n_positions - prompt.shape[1]
    if not 0 <= max_new_tokens <= room:
        where = f"the prompt has {prompt.shape[1]} tokens, the context {config.n_positions}"
        raise InputError(f"max_new_tokens must be from 0 to {max(room, 0)}, not {max_new_tokens}: {where}")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature must be at least 0 and finite, not {temperature}")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, not {top_p}")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be from 0 to 2^32 - 1, not {seed}")
    length, slots = _bucket(prompt.shape[1]), _bucket(prompt.shape[1]) + _bucket(max_new_tokens)
    padding = length - prompt.shape[1]
    buffer = np.pad(prompt, ((0, 0), (padding, 0))).astype(np.int32)
    top_k = min(top_k or config.n_tokens, config.n_tokens)  # of rows that are padding none is left
    settings = (temperature, 1.0 if top_p is None else top_p, -1 if eos_id is None else eos_id)
    out = _generate(model, buffer, padding, max_new_tokens, jax.random.key(seed), *settings, slots=slots, top_k=top_k)
    return out[:, padding : length + max_new_tokens]


def _bucket(length: int) -> int:
    """The length that a program is compiled for: 16, 32, 64, and then multiples of 64."""
    return next((size for size in (16, 32) if length <= size), -(-length // 64) * 64)


@jax.tree_util.register_dataclass
@dataclass
class Decoding:
    """What the loop over new tokens carries along."""

    tokens: Int[Array, "B S"]
    """Padding, prompts, what was added, and room for the rest."""
    cache: Cache
    token: Int[Array, " B"]
    """The last that was added, which the cache has not seen."""
    ended: Bool[Array, " B"]


@partial(jax.jit, static_argnames=("slots", "top_k"))
def _generate(model, prompt, padding, new, key, temperature, top_p, eos_id, *, slots, top_k):
    B, length = prompt.shape

    def choose(logits, i, state_ended):
        logits = mask_padding(logits, model.config)
        token = _choose(logits, jax.random.fold_in(key, i), temperature, top_p, top_k)
        return jnp.where(state_ended, eos_id, token)

    def step(carry):
        i, state = carry
        logits, cache = model.step(state.token[:, None], state.cache)
        return i + 1, added(i, choose(logits, i, state.ended), cache, state.tokens, state.ended)

    def added(i, token, cache, tokens, ended):
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (jnp.int32(0), length + i))
        return Decoding(tokens, cache, token, ended | (token == eos_id))

    start = jnp.full(B, padding, jnp.int32)
    cache = empty_cache(model.config, start, slots, model.dtype)
    tokens = jnp.pad(prompt, ((0, 0), (0, slots - length)), constant_values=0)
    # rows that end are filled with the end token, also when the loop stops before
    tokens = jnp.where((jnp.arange(slots) >= length)[None] & (eos_id >= 0), eos_id, tokens)
    logits, cache = model.step(prompt, cache)
    ended = jnp.zeros(B, bool)
    state = added(jnp.int32(0), choose(logits, jnp.int32(0), ended), cache, tokens, ended)
    _, state = jax.lax.while_loop(lambda c: (c[0] < new) & ~c[1].ended.all(), step, (jnp.int32(1), state))
    return state.tokens


def _choose(logits: Float[Array, "B V"], key: Array, temperature, top_p, top_k: int) -> Int[Array, " B"]:
    values, ids = jax.lax.top_k(logits, top_k)  # in falling order
    probabilities = jax.nn.softmax(values / jnp.maximum(temperature, 1e-6))
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < top_p, probabilities, 0)
    drawn = jax.random.categorical(key, jnp.log(kept))
    index = jnp.where(temperature == 0, 0, drawn)
    return jnp.take_along_axis(ids, index[:, None], axis=1)[:, 0]
