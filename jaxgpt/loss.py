"""The language-model loss: cross-entropy of each next token."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from convert.config import GPTConfig
from jaxgpt.model import GPT


def next_token_loss(
    model: GPT, tokens: Int[Array, "B T+1"], *, dropout_key: Array | None = None
) -> Float[Array, "B T"]:
    """Nats by which each token after the first is missed, given those before it; padded rows have no probability."""
    logits = mask_padding(model(tokens[:, :-1], dropout_key=dropout_key).astype(jnp.float32), model.config)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def mask_padding(logits: Float[Array, "... V"], config: GPTConfig) -> Float[Array, "... V"]:
    """The logits, with those of rows that stand for no token at minus infinity.

    Selected and not cut off, because V may be split over devices; the same array where there is no padding.
    """
    if not config.n_padding:
        return logits
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(ids < config.n_tokens, logits, -jnp.inf)
