"""Causal attention by the fastest way that there is.

That is cuDNN's flash kernel on an NVIDIA GPU and the splash kernel on a TPU. Elsewhere, and where those can't do what
is asked for, it is our own einsums.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgpt.mesh import platform
from jaxgpt.model.cudnn import cudnn_attention, fits_cudnn
from jaxgpt.model.dropout import Keys, dropout
from jaxgpt.model.segments import visible_in, visible_past
from jaxgpt.model.splash import fits_splash, splash_attention

LONG, QUERIES = 2048, 512
"""From so many positions on, so many queries at a time attend: (T, T) scores of every head would be most memory."""


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    window: int = 0,
    dropout_rate: float = 0.0,
    keys: Keys | None = None,
    capture: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """Compute softmax(scale q k) v over the positions up to each; scores and softmax are in float32.

    Args:
        k: each head of keys and values is for N / K heads of queries that follow one another.
        segments: the number of each position's text; it sees positions of its own text only.
        window: so many positions are seen at most, if it is not 0.
        capture: a function that is given the softmax, (B, N, T, T), which no fused kernel ever holds, and returns it,
            or what stands in its place.
    """
    where, written_out = platform(), (keys is not None and dropout_rate > 0) or capture is not None
    if where == "tpu" and not written_out and fits_splash(q, k):
        return splash_attention(q, k, v, scale=scale, segments=segments, window=window)
    if where == "gpu" and not written_out and fits_cudnn(q, k, segments, window):
        return cudnn_attention(q, k, v, scale=scale, segments=segments, window=window)
    if q.shape[1] >= LONG and q.shape[1] % QUERIES == 0 and not written_out:
        return blocked_attention(q, k, v, scale=scale, segments=segments, window=window)
    return einsum_attention(
        q, k, v, scale=scale, segments=segments, window=window, dropout_rate=dropout_rate, keys=keys, capture=capture
    )


def einsum_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    window: int = 0,
    dropout_rate: float = 0.0,
    keys: Keys | None = None,
    capture: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """Compute the same in plain einsums: heads come before positions, and the division by the softmax's sum last.

    It takes 0.75 of the step time and of the temporary memory of `jax.nn.dot_product_attention` on a CPU, which
    has no dropout either.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    visible = visible_past(q.shape[2], window) if segments is None else visible_in(segments, window)
    return attend(q, k, v, visible, scale=scale, dropout_rate=dropout_rate, keys=keys, capture=capture)


def blocked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Compute the same for some queries at a time, whose scores the backward pass computes again.

    So (B, N, T, T) scores are never held.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    T, at = q.shape[2], jnp.arange(q.shape[2], dtype=jnp.int32)

    @jax.checkpoint
    def some(start: Array) -> Array:
        rows = start + jnp.arange(QUERIES, dtype=jnp.int32)
        visible = at[None] <= rows[:, None]
        if window:
            visible &= at[None] > rows[:, None] - window
        visible = visible[None]
        if segments is not None:
            own = jax.lax.dynamic_slice_in_dim(segments, start, QUERIES, 1)
            visible &= own[:, :, None] == segments[:, None, :]
        return attend(jax.lax.dynamic_slice_in_dim(q, start, QUERIES, 2), k, v, visible, scale=scale)

    mixed = jax.lax.map(some, jnp.arange(0, T, QUERIES, dtype=jnp.int32))
    return jnp.moveaxis(mixed, 0, 1).reshape(q.shape[0], T, *mixed.shape[3:])


def attend(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible: Bool[Array, "#B T S"],
    *,
    scale: float,
    dropout_rate: float = 0.0,
    keys: Keys | None = None,
    capture: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """Attend to the slots that are visible to each position; to all alike if none is."""
    (B, N, T, H), K = q.shape, k.shape[1]
    if N > K:  # the queries of all heads that share a head of keys follow one another, like those of a longer text
        q, visible = q.reshape(B, K, N // K * T, H), jnp.tile(visible, (1, N // K, 1))
    scores = jnp.einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1)[..., None]
    if capture is not None:
        before = (weights / total).reshape(B, N, T, -1)
        after = capture(before)
        if after is not before:  # it was edited
            weights, total = after.reshape(weights.shape), jnp.ones_like(total)
    weights = dropout(weights, dropout_rate, keys).astype(v.dtype)
    mixed = jnp.einsum("BNTS,BNSH->BNTH", weights, v, preferred_element_type=jnp.float32) / total
    return jnp.swapaxes(mixed.reshape(B, N, T, H), 1, 2).astype(v.dtype)
