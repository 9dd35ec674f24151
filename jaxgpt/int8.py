"""Kernels in 8 bits: integers, and one scale for each output. They take a quarter of the memory, and never train."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Kernel:
    """A kernel whose numbers are `values * scale`; it counts as the kernel that it stands for."""

    values: Any
    """int8, from -127 to 127, in the kernel's shape."""
    scale: Any
    """float32, in the shape of the kernel's outputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    @property
    def n_in(self) -> int:
        """The number of its first axes that are inputs."""
        return self.values.ndim - self.scale.ndim


def quantise(kernel: jax.Array, n_in: int, shardings: Int8Kernel | None = None) -> Int8Kernel:
    """Return a kernel in 8 bits: symmetric, the largest number of each output is 127 or -127.

    Args:
        n_in: the number of its first axes that are inputs.
        shardings: those of the result.
    """
    return jax.jit(_quantised, static_argnames="n_in", out_shardings=shardings)(kernel, n_in=n_in)


def _quantised(kernel: jax.Array, *, n_in: int) -> Int8Kernel:
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), tuple(range(n_in)), keepdims=True) / 127
    values = jnp.round(kernel / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
    return Int8Kernel(values, scale.reshape(kernel.shape[n_in:]))


def int8_shapes(kernel: Any, n_in: int, sharding: NamedSharding) -> Int8Kernel:
    """Return the shapes of a kernel in 8 bits, with shardings: the scale is split as the kernel's outputs are."""
    spec = (*sharding.spec, *(None,) * (len(kernel.shape) - len(sharding.spec)))
    outputs = NamedSharding(sharding.mesh, P(*spec[n_in:]))
    return Int8Kernel(
        jax.ShapeDtypeStruct(kernel.shape, jnp.int8, sharding=sharding),
        jax.ShapeDtypeStruct(kernel.shape[n_in:], jnp.float32, sharding=outputs),
    )
