"""How long a step might take on a chip that is not there, and on what assumptions."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgpt.train.compile_only.collectives import Traffic, collectives
from jaxgpt.train.compile_only.flops import Flops, passes, step_flops
from jaxgpt.train.compile_only.hlo import HloModule
from jaxgpt.train.compile_only.topology import Topology
from jaxgpt.train.step.spec import StepSpec

ASSUMED_COMPUTE_UTILISATION, ASSUMED_MEMORY_UTILISATION, ASSUMED_LINK_UTILISATION = 0.5, 0.8, 0.5
"""Fractions of a chip's peak that a step is assumed to reach while it does nothing else. Large models train at 0.4 to
0.6 of the matrix units' (PaLM 0.46: Chowdhery et al. 2022, section 6.3); a slice that is no whole torus has half its
links."""


@dataclass(frozen=True)
class StepTime:
    """Of one step."""

    compute_seconds: float
    """Seconds, as for the others."""
    memory_seconds: float
    interconnect_seconds: float

    @property
    def seconds(self) -> float:
        """The largest: they go on at the same time, as far as the compiler can arrange it."""
        return max(self.compute_seconds, self.memory_seconds, self.interconnect_seconds)

    @property
    def bound(self) -> str:
        """What it waits for."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, f"{name}_seconds"))


def trainable_shapes(spec: StepSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """What trains in the last phase."""
    return spec.state(spec.plan.phases[-1].start).trainable


def flops_of(spec: StepSpec) -> Flops:
    """Of a step of the last phase, over all chips."""
    batch = spec.settings.batch_size, spec.context
    return step_flops(spec.model.config, trainable_shapes(spec), batch, remat=spec.settings.remat)


def traffic_of(spec: StepSpec, program: HloModule) -> dict[str, Traffic]:
    """Of a step, by kind of collective."""
    return collectives(program, spec.mesh.size)


def bytes_per_device(tree: object) -> int:
    """Bytes of a tree of shapes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def bytes_moved(spec: StepSpec) -> float:
    """Bytes that a step moves from and to a device's memory, if nothing but products and AdamW bytes_moved any.

    Each product reads and writes its activations and reads its whole kernel in each part of the batch; AdamW reads and
    writes what trains, with its moments. What lies between is fused with them.
    """
    settings, config, mesh = spec.settings, spec.model.config, spec.mesh
    width, total = jnp.dtype(settings.dtype).itemsize, 0.0
    state = spec.state(spec.plan.phases[-1].start)
    batch = settings.batch_size, spec.context
    for product, gradients, again in passes(config, state.trainable, batch, remat=settings.remat):
        kernels = settings.accumulate * product.kernel / mesh.shape["tensor"]
        total += (1 + gradients + again) * width * (product.activations / mesh.size + kernels)
    return total + 2 * bytes_per_device((state.trainable, state.opt_state))


def estimate_step_time(spec: StepSpec, topology: Topology, program: HloModule) -> StepTime:
    """For a slice whose chip is known."""
    chip = topology.chip
    assert chip is not None
    sent = sum(kind.bytes_sent for kind in traffic_of(spec, program).values())
    return StepTime(
        compute_seconds=flops_of(spec).hardware / topology.n_chips / (ASSUMED_COMPUTE_UTILISATION * chip.flops),
        memory_seconds=bytes_moved(spec) / (ASSUMED_MEMORY_UTILISATION * chip.bandwidth / chip.cores),
        interconnect_seconds=sent / (ASSUMED_LINK_UTILISATION * chip.links / chip.cores),
    )
