"""Products of matrices in bfloat16 as a CPU has instructions for them (AMX, AVX512-BF16)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgpt.mesh import is_for_one_cpu


def fits_bfloat16_product(dtype: Any) -> bool:
    """Return whether `bfloat16_product` makes the products of layers that compute in a dtype: on a single CPU."""
    return is_for_one_cpu() and dtype is not None and jnp.dtype(dtype) == jnp.bfloat16


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def bfloat16_product(
    x: Float[Array, "R I"], kernel: Float[Array, "I O"] | Float[Array, "O I"], axis: int
) -> Float[Array, "R O"]:
    """Return the product of rows and a kernel, both rounded to bfloat16, in float32.

    XLA's CPU backend multiplies in bfloat16 only what is summed in float32, and only if the axis that is summed is the
    last one of what stands on the left: all else it converts to float32 first, which takes six times as long. JAX's
    own derivative of a product is of neither kind.

    Args:
        axis: that of the kernel's inputs, 0 or 1.
    """
    return _product(x, kernel, axis)


def _forward(x, kernel, axis):
    return _product(x, kernel, axis), (x, kernel)


def _backward(axis, kept, gradient):
    x, kernel = kept
    left, right = (x, gradient) if axis == 0 else (gradient, x)
    of_kernel = _product(_transposed(left.astype(jnp.bfloat16)), right, 0)
    return _product(gradient, kernel, 1 - axis).astype(x.dtype), of_kernel.astype(kernel.dtype)


bfloat16_product.defvjp(_forward, _backward)


def _product(left: Array, right: Array, axis: int) -> Array:
    left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return jax.lax.dot_general(left, right, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _transposed(x: Array) -> Array:
    """Return a transposed matrix, in a way that XLA does not make a part of the product again."""
    rows, columns = x.shape
    inner = next((size for size in range(64, 1, -1) if columns % size == 0), 1)
    return x.reshape(rows, -1, inner).transpose(1, 2, 0).reshape(columns, rows)
