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


def visible_past(T: int, window: int = 0) -> Bool[Array, "1 T T"]:
    """Return the positions that each sees in a row of one text: its own, and those before it.

    Args:
        window: so many positions at most, if it is not 0.
    """
    past = jnp.tril(jnp.ones((T, T), bool))[None]
    return past & jnp.triu(jnp.ones((T, T), bool), 1 - window)[None] if window else past


def visible_in(segments: Int[Array, "B T"], window: int = 0) -> Bool[Array, "B T T"]:
    """Return the same where rows hold several texts: those of its own segment."""
    return visible_past(segments.shape[1], window) & (segments[:, :, None] == segments[:, None, :])
