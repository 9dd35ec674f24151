"""Causal attention on an NVIDIA GPU: cuDNN's flash kernel, which never holds the (B, N, T, T) scores."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgpt.mesh import AXES, divides, on_own_heads
from jaxgpt.model.segments import visible_in, visible_past

AMPERE, HOPPER = (8, 0), (9, 0)
"""Compute capabilities: from the one on there is the kernel, from the other on its gradient takes any mask."""


def fits_cudnn(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], segments: Int[Array, "B T"] | None = None, window: int = 0
) -> bool:
    """Return whether the kernel takes such queries, forward and backward.

    It needs half precision, an even T, a head size that is a multiple of 8 and at most 128, and the GPU and the mesh
    that this is traced for.
    """
    T, H = q.shape[1], q.shape[3]
    if q.dtype not in (jnp.float16, jnp.bfloat16) or T % 2 or H % 8 or H > 128:
        return False
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and not divides(q, k):
        return False
    return compute_capability() >= (AMPERE if segments is None and not window else HOPPER)


def compute_capability() -> tuple[int, int]:
    """Return the compute capability of this machine's NVIDIA GPU.

    Without a GPU, where the program is compiled for another machine, it is the newest.
    """
    if jax.default_backend() != "gpu":
        return (99, 0)
    device: Any = jax.local_devices()[0]
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))  # of AMD's: gfx90a
    return (int(found[1]), int(found[2])) if found else (0, 0)


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Compute softmax(scale q k) v over the positions up to each, in its own segment; where `fits_cudnn` holds."""

    def rows(q, k, v, segments=None):
        mask = visible_past(q.shape[1], window)[:, None] if window else None
        if segments is not None:
            mask = visible_in(segments, window)[:, None]
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, scale=scale, is_causal=mask is None, implementation="cudnn"
        )  # fmt: skip

    given = (q, k, v) if segments is None else (q, k, v, segments)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or mesh.axis_names != AXES:
        return rows(*given)
    # each device has whole rows and heads: left to find that out, XLA asks JAX back, and may have split another axis
    return on_own_heads(rows, *given)
