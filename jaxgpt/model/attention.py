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
from jaxgpt.model.segments import visible_in
from jaxgpt.model.splash import fits_splash, splash_attention


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    keys: Keys | None = None,
    capture: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """Compute softmax(scale q k) v over the positions up to each; scores and softmax are in float32.

    Args:
        segments: the number of each position's text; it sees positions of its own text only.
        capture: a function that is given the softmax, (B, N, T, T), which no fused kernel ever holds.
    """
    where, written_out = platform(), (keys is not None and dropout_rate > 0) or capture is not None
    if where == "tpu" and not written_out and fits_splash(q):
        return splash_attention(q, k, v, scale=scale, segments=segments)
    if where == "gpu" and not written_out and fits_cudnn(q, segments):
        return cudnn_attention(q, k, v, scale=scale, segments=segments)
    return einsum_attention(
        q, k, v, scale=scale, segments=segments, dropout_rate=dropout_rate, keys=keys, capture=capture
    )


def einsum_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    keys: Keys | None = None,
    capture: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """Compute the same in plain einsums: heads come before positions, and the division by the softmax's sum last.

    It takes 0.75 of the step time and of the temporary memory of `jax.nn.dot_product_attention` on a CPU, which
    has no dropout either.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    visible = jnp.tril(jnp.ones((q.shape[2], q.shape[2]), bool))[None] if segments is None else visible_in(segments)
    return attend(q, k, v, visible, scale=scale, dropout_rate=dropout_rate, keys=keys, capture=capture)


def attend(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B N S H"],
    v: Float[Array, "B N S H"],
    visible: Bool[Array, "#B T S"],
    *,
    scale: float,
    dropout_rate: float = 0.0,
    keys: Keys | None = None,
    capture: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """Attend to the slots that are visible to each position; to all alike if none is."""
    scores = jnp.einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1)[..., None]
    if capture is not None:
        capture(weights / total)
    weights = dropout(weights, dropout_rate, keys).astype(v.dtype)
    mixed = jnp.einsum("BNTS,BNSH->BNTH", weights, v, preferred_element_type=jnp.float32) / total
    return jnp.swapaxes(mixed, 1, 2).astype(v.dtype)
