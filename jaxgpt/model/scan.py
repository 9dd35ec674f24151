"""Blocks that are alike as a loop over their stacked parameters, so that the compiler has to do with one of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgpt.mesh import AXES, constrain, platform
from jaxgpt.model.capture import ForwardContext

SHARDS = 8
"""Parts of the width from which on a TPU runs blocks as loops."""


def fits_scan(x: Float[Array, "B T D"], ctx: ForwardContext) -> bool:
    """Return whether blocks run as loops: in training with `remat`, on a CPU and on TPUs that split the width.

    One after the other they take half as much memory again on these TPUs, and twice as long to compile; on a CPU XLA
    undoes `remat` outside of loops. But the stacked parameters and their gradients are copies: over fewer TPUs, and for
    fewer tokens than a CPU's model is wide, a loop takes more memory. So it does without `remat`, as it keeps all that
    a block computed.
    """
    if not ctx.remat or ctx.cache is not None or ctx.captures is not None:
        return False
    if platform() == "cpu":
        return math.prod(x.shape[:2]) > x.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "tpu" and mesh.axis_names == AXES and mesh.shape["fsdp"] >= SHARDS


def scan_blocks(
    run: Callable[[Any, Array, ForwardContext], tuple[Array, ForwardContext]],
    blocks: Sequence[Any],
    x: Float[Array, "B T D"],
    ctx: ForwardContext,
) -> Float[Array, "B T D"]:
    """Run blocks one after the other, and drop what they computed but the residual stream between them.

    Args:
        run: what runs a block, and returns its output and what its context has become.
    """

    own, keys = ctx.of_block(0), ctx.keys
    if keys is not None:
        keys = replace(keys, used=jnp.asarray(keys.used, jnp.int32))

    def step(carry: Any, block: Any) -> tuple[Any, None]:
        x, after = run(block, carry[0], replace(own, keys=carry[1]))
        return (constrain(x), after.keys), None

    for alike in _alike(blocks):
        if len(alike) == 1:
            (x, keys), _ = jax.checkpoint(step)((x, keys), alike[0])
        else:
            stacked = jax.tree.map(lambda *each: jnp.stack(each), *alike)
            (x, keys), _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), (x, keys), stacked)
    return x


def _alike(blocks: Sequence[Any]) -> Iterator[list[Any]]:
    """Divide blocks into those that follow one another and differ in numbers only.

    A parameter that is differentiated is a tracer of another class than a frozen one. Stacked with it, the frozen one
    would have a gradient too. Where a part of each block trains, the first one is alone: what lies below that part in
    it needs no gradient.
    """

    def kind(block: Any) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(block)
        return structure, [(type(leaf), jnp.shape(leaf), leaf.dtype) for leaf in leaves]

    for (_, leaves), found in groupby(blocks, kind):
        alike = list(found)
        n_alone = len({kind_of_leaf for kind_of_leaf, *_ in leaves}) > 1
        yield from (part for part in (alike[:n_alone], alike[n_alone:]) if part)
