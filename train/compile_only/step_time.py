"""How long a step might take on a chip that is not there, and on what assumptions."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgpt.train.compile_only.collectives import Traffic, collectives
from jaxgpt.train.compile_only.flops import Flops, passes, step_flops
from jaxgpt.train.compile_only.hlo import Program
from jaxgpt.train.compile_only.topology import Slice
from jaxgpt.train.step.spec import Recipe

MATRIX_UNITS, MEMORY, LINKS = 0.5, 0.8, 0.5
"""Fractions of a chip's peak that a step is assumed to reach while it does nothing else. Large models train at 0.4 to
0.6 of the matrix units' (PaLM 0.46: Chowdhery et al. 2022, section 6.3); a slice that is no whole torus has half its
links."""


@dataclass(frozen=True)
class Forecast:
    """Of one step."""

    compute: float
    """Seconds, as for the others."""
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The largest: they go on at the same time, as far as the compiler can arrange it."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """What it waits for."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def trains(recipe: Recipe) -> dict[str, jax.ShapeDtypeStruct]:
    """What trains in the last phase."""
    return recipe.state(recipe.plan.phases[-1].start).trainable


def flops_of(recipe: Recipe) -> Flops:
    """Of a step of the last phase, over all chips."""
    batch = recipe.settings.batch_size, recipe.context
    return step_flops(recipe.model.config, trains(recipe), batch, remat=recipe.settings.remat)


def traffic_of(recipe: Recipe, program: Program) -> dict[str, Traffic]:
    """Of a step, by kind of collective."""
    return collectives(program, recipe.mesh.size)


def held(tree: object) -> int:
    """Bytes of a tree of shapes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def moved(recipe: Recipe) -> float:
    """Bytes that a step moves from and to a device's memory, if nothing but products and AdamW moved any.

    Each product reads and writes its activations and reads its whole kernel in each part of the batch; AdamW reads and
    writes what trains, with its moments. What lies between is fused with them.
    """
    settings, config, mesh = recipe.settings, recipe.model.config, recipe.mesh
    width, total = jnp.dtype(settings.dtype).itemsize, 0.0
    state = recipe.state(recipe.plan.phases[-1].start)
    batch = settings.batch_size, recipe.context
    for product, gradients, again in passes(config, state.trainable, batch, remat=settings.remat):
        kernels = settings.accumulate * product.kernel / mesh.shape["tensor"]
        total += (1 + gradients + again) * width * (product.activations / mesh.size + kernels)
    return total + 2 * held((state.trainable, state.opt_state))


def forecast(recipe: Recipe, slice: Slice, program: Program) -> Forecast:
    """For a slice whose chip is known."""
    chip = slice.chip
    assert chip is not None
    sent = sum(kind.bytes for kind in traffic_of(recipe, program).values())
    return Forecast(
        compute=flops_of(recipe).hardware / slice.n_chips / (MATRIX_UNITS * chip.flops),
        memory=moved(recipe) / (MEMORY * chip.bandwidth / chip.cores),
        interconnect=sent / (LINKS * chip.links / chip.cores),
    )
