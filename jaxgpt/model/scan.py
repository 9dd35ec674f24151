"""Blocks that are alike as a loop over their stacked parameters, so that the compiler has to do with one of them."""

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


def fits_scan(ctx: ForwardContext) -> bool:
    """Return whether blocks run as loops: in training with `remat`, on TPUs that split the width into several parts.

    Written out one after the other they then take half as much memory again, and twice as long to compile. Over fewer
    devices a loop takes more memory, since the stacked parameters and their gradients are copies. So it does without
    `remat`, as it keeps all that a block computed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    is_split = mesh.axis_names == AXES and mesh.shape["fsdp"] >= SHARDS
    return platform() == "tpu" and is_split and ctx.remat and ctx.cache is None and ctx.captures is None


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

    def step(carry: Any, block: Any) -> tuple[Any, None]:
        x, after = run(block, carry[0], replace(own, keys=carry[1]))
        return (constrain(x), after.keys), None

    own, keys = ctx.of_block(0), ctx.keys
    if keys is not None:
        keys = replace(keys, used=jnp.asarray(keys.used, jnp.int32))
    for alike in _alike(blocks):
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *alike)
        (x, keys), _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), (x, keys), stacked)
    return x


def _alike(blocks: Sequence[Any]) -> Iterator[list[Any]]:
    """Divide blocks into those that follow one another and differ in numbers only.

    A parameter that is differentiated is a tracer of another class than a frozen one. Stacked with it, the frozen one
    would have a gradient too.
    """

    def kind(block: Any) -> Any:
        leaves, structure = jax.tree.flatten(block)
        return structure, [(type(leaf), jnp.shape(leaf), leaf.dtype) for leaf in leaves]

    for _, alike in groupby(blocks, kind):
        yield list(alike)
