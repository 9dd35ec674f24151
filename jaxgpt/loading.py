"""From the arrays of a file to arrays on devices: each host reads its part, once, and copies it once."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxgpt import convert
from jaxgpt.convert.adapter import ADAPTERS
from jaxgpt.mesh import AXES, RULES, WHOLE_VOCABULARY, shardings

BLOCK_ROWS = 64
"""Rows that are transposed at once."""


def to_jax(checkpoint: convert.Checkpoint, dtype: np.dtype, mesh: Mesh | None = None) -> dict[str, jax.Array]:
    """Load the parameters by name as JAX arrays of a dtype, on the first device or by the rules of a mesh.

    Those of adapters are float32 whatever the others are.
    One copy of a mapped file, several tensors at once. A vocabulary that `tensor` does not divide is not split over it.
    Of several processes each reads its share of the bytes and no more, wherever the parameters are to lie.
    """
    params = checkpoint.params
    sharding_of: dict[str, Sharding] = dict.fromkeys(params, SingleDeviceSharding(jax.devices()[0]))
    if mesh is not None:
        whole = checkpoint.config.vocab_size % mesh.shape["tensor"] > 0
        sharding_of |= shardings(params, mesh, WHOLE_VOCABULARY if whole else RULES)
    restored: dict[str, jax.Array] = {}
    if checkpoint.format == "Orbax" and checkpoint.adapter is None:
        from jaxgpt.convert.formats import orbax

        own = [name for name in params if checkpoint.base is None or name not in checkpoint.base.digests]
        dtypes = {name: np.dtype(np.float32) if ADAPTERS.fullmatch(name) else dtype for name in own}
        averaged = bool(checkpoint.told.get("averaged"))
        places = {name: sharding_of[name] for name in own}
        restored = orbax.restore(checkpoint.weights, places, dtypes, averaged=averaged)
        sharding_of = {name: sharding for name, sharding in sharding_of.items() if name not in restored}
    if mesh is not None and jax.process_count() > 1 and sharding_of:
        return restored | _shared({name: params[name] for name in sharding_of}, sharding_of, dtype, mesh)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        arrays = pool.map(lambda name: _put(params[name], sharding_of[name], dtype), sharding_of)
        return restored | dict(zip(sharding_of, arrays, strict=True))


def _shared(
    params: dict[str, Any], sharding_of: dict[str, Sharding], dtype: np.dtype, mesh: Mesh
) -> dict[str, jax.Array]:
    """Load parameters on several processes, each of which reads its share of the bytes.

    Each device is given rows that are side by side in the file, and the devices then exchange them.

    What a device holds in the end may be a piece of every row, and a disk reads whole pages; or it may be all, and
    every host would read all.
    """
    sizes = {name: param.shape for name, param in params.items()}
    axes = {name: _outermost(param) for name, param in params.items()}

    def spread(name: str) -> jax.Array:
        return _put(params[name], NamedSharding(mesh, P(*(None,) * axes[name], AXES)), dtype, over=axes[name])

    @partial(jax.jit, out_shardings=sharding_of)
    def exchange(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {n: jax.lax.slice_in_dim(x, 0, sizes[n][axes[n]], axis=axes[n]) for n, x in arrays.items()}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return exchange(dict(zip(params, pool.map(spread, params), strict=True)))


def _outermost(array: Any) -> int:
    """Return the axis whose rows are side by side in memory; in a transposed view it is not the first."""
    return int(np.argmax(array.strides)) if isinstance(array, np.ndarray) else 0


def _put(array: Any, sharding: Sharding, dtype: np.dtype, over: int | None = None) -> jax.Array:
    """Put an array on the devices; each is given only its own slice, and of a mapped file no more is read.

    Args:
        over: the axis that is first extended, by whatever, to a length that the devices divide.
    """
    source = array if isinstance(array, np.ndarray) else np.asarray(array)
    shape = list(source.shape)
    if over is not None:
        shape[over] += -shape[over] % len(sharding.device_set)
    sizes = sharding.shard_shape(tuple(shape))
    return jax.make_array_from_callback(tuple(shape), sharding, lambda index: _aligned(source[index], dtype, sizes))


def _aligned(source: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return a contiguous copy at an address that XLA uses as it is on a CPU, instead of copying it again."""
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)
    begin = -buffer.ctypes.data % 64
    copy = buffer[begin : begin + size].view(dtype).reshape(shape)
    _fill(copy[tuple(map(slice, source.shape))], source)
    return copy


def _fill(target: np.ndarray, source: np.ndarray) -> None:
    """Copy an array into another of its shape; a transposed one in blocks of its rows in memory, which is faster."""
    is_rotated = False
    for n_first in range(1, source.ndim):
        rows = source.transpose(*range(n_first, source.ndim), *range(n_first))
        if is_rotated := rows.flags.c_contiguous and not source.flags.c_contiguous and target.flags.c_contiguous:
            break
    if not is_rotated:
        target[...] = source
        return
    rows = rows.reshape(-1, math.prod(source.shape[:n_first]))
    columns = target.reshape(rows.shape[::-1])
    # rows of 4,096 bytes, and of multiples of it, all want the same places in a cache: these are longer
    block = np.empty((BLOCK_ROWS, rows.shape[1] + 16), target.dtype)[:, : rows.shape[1]]
    for begin in range(0, len(rows), BLOCK_ROWS):
        some = rows[begin : begin + BLOCK_ROWS]
        block[: len(some)] = some
        columns[:, begin : begin + BLOCK_ROWS] = block[: len(some)].T
