"""Several texts in one row: which positions are of one text, and where each begins.

A segment is a run of equal numbers in an array of the tokens' shape; 0 is padding, on either side or between.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def positions(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Return for each token the number of tokens of its own segment that come before it."""
    at = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32)[None], segments.shape)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def visible_in(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Return the positions that each sees: its own, and those before it in its segment."""
    past = jnp.tril(jnp.ones((segments.shape[1],) * 2, bool))
    return past[None] & (segments[:, :, None] == segments[:, None, :])
