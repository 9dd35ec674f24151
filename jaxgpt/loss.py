"""The language-model loss: cross-entropy of each next token."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgpt.model import GPT


def next_token_loss(
    model: GPT, tokens: Int[Array, "B T+1"], *, dropout_key: Array | None = None
) -> Float[Array, "B T"]:
    """Nats by which each token after the first is missed, given those before it."""
    logits = model(tokens[:, :-1], dropout_key=dropout_key)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens[:, 1:])
