"""Text from a model: the plain way, one whole forward pass for each new token, on the device."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from convert.errors import InputError
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
    buffer = np.pad(prompt, ((0, 0), (0, max_new_tokens))).astype(np.int32)
    top_k = min(top_k or config.n_tokens, config.n_tokens)  # of rows that are padding none is left
    settings = (temperature, 1.0 if top_p is None else top_p, -1 if eos_id is None else eos_id)
    return _generate(model, buffer, prompt.shape[1], jax.random.key(seed), *settings, top_k=top_k)


@partial(jax.jit, static_argnames="top_k")
def _generate(model, buffer, start, key, temperature, top_p, eos_id, *, top_k):
    def step(t, buffer):
        # what lies to the right of t - 1 is not written yet, and causal attention does not see it
        logits = mask_padding(model(buffer)[:, t - 1], model.config)
        token = _choose(logits, jax.random.fold_in(key, t), temperature, top_p, top_k)
        ended = (buffer[:, t - 1] == eos_id) & (t > start)
        return buffer.at[:, t].set(jnp.where(ended, eos_id, token))

    return jax.lax.fori_loop(start, buffer.shape[1], step, jnp.asarray(buffer))


def _choose(logits: Float[Array, "B V"], key: Array, temperature, top_p, top_k: int) -> Int[Array, " B"]:
    values, ids = jax.lax.top_k(logits, top_k)  # in falling order
    probabilities = jax.nn.softmax(values / jnp.maximum(temperature, 1e-6))
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < top_p, probabilities, 0)
    drawn = jax.random.categorical(key, jnp.log(kept))
    index = jnp.where(temperature == 0, 0, drawn)
    return jnp.take_along_axis(ids, index[:, None], axis=1)[:, 0]
