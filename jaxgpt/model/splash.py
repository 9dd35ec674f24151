"""Causal attention on a TPU: JAX's splash kernel, which never holds the (B, N, T, T) scores.

https://github.com/jax-ml/jax/tree/main/jax/experimental/pallas/ops/tpu/splash_attention. XLA can't split a kernel over
devices, so that each is given its own rows and heads.
"""

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from jaxgpt.mesh import divides, on_own_heads

BLOCKS = (512, 256, 128)
"""Positions that the kernel takes at once: the first that divides T. 128 is a TPU's vector; larger ones reuse more."""


def fits_splash(q: Float[Array, "B T N H"], k: Float[Array, "B T K H"]) -> bool:
    """Return whether each device of the mesh has whole rows and heads, and whole blocks of positions."""
    return divides(q, k) and q.shape[1] % BLOCKS[-1] == 0


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    window: int = 0,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Compute softmax(scale q k) v over the positions up to each, in its own segment; where `fits_splash` holds.

    Args:
        interpret: compute what the kernel would on whatever device there is.
    """
    given = (q * scale, k, v) if segments is None else (q * scale, k, v, segments)
    return on_own_heads(partial(_rows, interpret, window), *given)


def _rows(interpret: bool, window: int, q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
    """Run the kernel on the rows and heads of one device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, N = q.shape[1:3]
    block = next(size for size in BLOCKS if T % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    one = splash.LocalMask((T, T), (window - 1, 0), 0) if window else splash.CausalMask((T, T))
    mask = splash.MultiHeadMask([one] * N)
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    if segments is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        out = jax.vmap(kernel)(q, k, v, segment_ids=splash.SegmentIds(segments, segments))
    return out.swapaxes(1, 2)
