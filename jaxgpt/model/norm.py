"""Norms of the residual stream: Flax's, and on an NVIDIA GPU their gradient in one kernel.

XLA takes several kernels for that gradient. It writes what the gradients of scale and bias sum up, to read it again,
and adds the gradient of the stream that goes on beside the norm in a kernel of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxgpt.mesh import AXES, ROWS, batch_shards, is_for_one_cpu, platform
from jaxgpt.model.cudnn import AMPERE, compute_capability

PROGRAMS = 512
"""Programs of the kernel, at most. Each sums the gradients of scale and bias over its rows, then these are added."""

TILE = 4096
"""Numbers that a program holds of an array at once: whole rows, and so one at least."""

WIDEST = 8192
"""Numbers of a row that fit into the registers of a program."""


def normed(
    norm: nnx.LayerNorm | nnx.RMSNorm, x: Float[Array, "B T D"], dtype: Any
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """Return x, to go on with, and its norm, of which `dtype` will be read.

    The gradients of both are added where that of the norm is computed, if x is used no more.
    """
    if not fits_kernel(x):
        # on a CPU the gradient computes it again, so that nothing but x is kept
        return x, (jax.checkpoint(type(norm).__call__)(norm, x) if is_for_one_cpu() else norm(x))
    scale, bias = norm.scale, getattr(norm, "bias", None)
    assert scale is not None
    shift = None if bias is None else bias[...]
    return beside_norm(x, scale[...], shift, norm.epsilon, isinstance(norm, nnx.LayerNorm), jnp.dtype(dtype))


def fits_kernel(x: Float[Array, "B T D"]) -> bool:
    """Return whether this is traced for a GPU that has the kernel, and each device has whole rows."""
    mesh = jax.sharding.get_abstract_mesh()
    is_split = mesh.size > 1 and (mesh.axis_names != AXES or x.shape[0] % batch_shards(mesh) > 0)
    if platform() != "gpu" or x.dtype != jnp.float32 or x.shape[-1] > WIDEST or is_split:
        return False
    return compute_capability() >= AMPERE


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def beside_norm(
    x: Float[Array, "B T D"],
    scale: Float[Array, " D"],
    shift: Float[Array, " D"] | None,
    epsilon: float,
    is_centred: bool,
    dtype: Any,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """Return x and its norm in a dtype: a LayerNorm, or an RMSNorm if it is not centred."""
    return _forward(x, scale, shift, epsilon, is_centred, dtype)[0]


def _forward(x, scale, shift, epsilon, is_centred, dtype):
    centred = x - x.mean(-1, keepdims=True) if is_centred else x
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    y = centred * (inverse * scale[None, None])
    y = y if shift is None else y + shift[None, None]
    # not the mean and the deviation, which the kernel computes again: to write them, XLA takes four kernels for one
    return (x, y.astype(dtype)), (x, scale, shift)


def _backward(epsilon, is_centred, dtype, kept, gradients):
    x, scale, shift = kept
    run: Callable[..., Any] = partial(norm_gradients, epsilon=epsilon, is_centred=is_centred)
    if jax.sharding.get_abstract_mesh().size > 1:  # each device has sums of its own rows
        rows, sums = P(ROWS, None, None), P(ROWS, None)
        run = jax.shard_map(run, in_specs=(rows, rows, rows, P()), out_specs=(rows, sums, sums), check_vma=False)
    of_x, of_scale, of_shift = run(x, *gradients, scale)
    return of_x, of_scale.sum(0), None if shift is None else of_shift.sum(0)


beside_norm.defvjp(_forward, _backward)


def norm_gradients(
    x: Float[Array, "B T D"],
    stream_gradient: Float[Array, "B T D"],
    norm_gradient: Float[Array, "B T D"],
    scale: Float[Array, " D"],
    *,
    epsilon: float,
    is_centred: bool,
    interpret: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, "parts D"], Float[Array, "parts D"]]:
    """Compute the gradients of x, and of scale and shift in parts; each number is read once.

    Args:
        interpret: compute what the kernel would on whatever device there is.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    shape, width = x.shape, x.shape[-1]
    x, stream_gradient, norm_gradient = (array.reshape(-1, width) for array in (x, stream_gradient, norm_gradient))
    padded = pl.next_power_of_2(width)
    at_once = max(TILE // padded, 1)
    n_programs = min(pl.cdiv(len(x), at_once), PROGRAMS)
    call = pl.pallas_call(
        partial(_kernel, n_programs=n_programs, tile=(at_once, padded), epsilon=epsilon, is_centred=is_centred),
        grid=(n_programs,),
        out_shape=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((n_programs, width), jnp.float32),
            jax.ShapeDtypeStruct((n_programs, width), jnp.float32),
        ),
        compiler_params=triton.CompilerParams(num_warps=8 if padded <= TILE else 16, num_stages=1),
        interpret=interpret,
        name="norm_gradients",
    )
    of_x, of_scale, of_shift = call(x, stream_gradient, norm_gradient, scale)
    return of_x.reshape(shape), of_scale, of_shift


def _kernel(
    x_ref, stream_ref, norm_ref, scale_ref, of_x_ref, of_scale_ref, of_shift_ref,
    *, n_programs: int, tile: tuple[int, int], epsilon: float, is_centred: bool,
):  # fmt: skip
    """Take every `n_programs`-th tile of rows, from that of this program's number on."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (n_rows, width), (at_once, padded) = x_ref.shape, tile
    program, columns = pl.program_id(0), jnp.arange(padded, dtype=jnp.int32)
    is_column = columns < width
    scale = triton.load(scale_ref.at[columns], mask=is_column, other=0.0).astype(jnp.float32)[None]

    def add(i, sums):
        rows = (program + i * n_programs) * at_once + jnp.arange(at_once, dtype=jnp.int32)
        at, mask = (rows[:, None], columns[None]), (rows < n_rows)[:, None] & is_column[None]

        def load(ref):
            return triton.load(ref.at[at], mask=mask, other=0.0).astype(jnp.float32)

        def mean(values):
            return jnp.sum(values, 1, keepdims=True) / width

        x, gradient = load(x_ref), load(norm_ref)
        centred = jnp.where(mask, x - mean(x), 0.0) if is_centred else x
        inverse = jax.lax.rsqrt(mean(jnp.square(centred)) + epsilon)
        unit, scaled = centred * inverse, gradient * scale
        change = scaled - unit * mean(scaled * unit)
        if is_centred:
            change = change - mean(scaled)
        triton.store(of_x_ref.at[at], load(stream_ref) + change * inverse, mask=mask)
        of_scale, of_shift = sums
        return of_scale + gradient * unit, of_shift + gradient

    n_tiles = pl.cdiv(n_rows, at_once)
    zeros = jnp.zeros(tile, jnp.float32)
    sums = jax.lax.fori_loop(0, (n_tiles - program + n_programs - 1) // n_programs, add, (zeros, zeros))
    for ref, total in zip((of_scale_ref, of_shift_ref), sums, strict=True):
        triton.store(ref.at[program, columns], jnp.sum(total, 0), mask=is_column)
