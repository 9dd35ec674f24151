"""Estimate of a step's time on chips that are not here, and its assumptions."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgpt.training.compile_only.collectives import Traffic, collectives
from jaxgpt.training.compile_only.flops import Flops, passes, step_flops
from jaxgpt.training.compile_only.hlo import HloModule
from jaxgpt.training.compile_only.topology import Topology
from jaxgpt.training.step.spec import StepSpec

ASSUMED_COMPUTE_UTILISATION, ASSUMED_MEMORY_UTILISATION, ASSUMED_LINK_UTILISATION = 0.5, 0.8, 0.5
"""Fractions of a chip's peak that computation, memory and links are each assumed to reach. Large models train at 0.4 to
0.6 of the peak FLOP/s (PaLM 0.46: Chowdhery et al. 2022, section 6.3); a slice that is not a whole torus has half its
links."""


@dataclass(frozen=True)
class StepTime:
    """Estimated time of one step, by resource."""

    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float

    @property
    def seconds(self) -> float:
        """The longest of the three, which are assumed to overlap completely."""
        return max(self.compute_seconds, self.memory_seconds, self.interconnect_seconds)

    @property
    def bound(self) -> str:
        """The resource that limits the step."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, f"{name}_seconds"))


def trainable_shapes(spec: StepSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the parameters that train in the last phase."""
    return spec.state(spec.plan.phases[-1].start).trainable


def flops_of(spec: StepSpec) -> Flops:
    """Count the FLOPs of a step of the last phase, over all chips."""
    batch = spec.settings.batch_size, spec.context
    return step_flops(spec.model.config, trainable_shapes(spec), batch, remat=spec.settings.remat)


def traffic_of(spec: StepSpec, program: HloModule) -> dict[str, Traffic]:
    """Count what a step sends, by kind of collective."""
    return collectives(program, spec.mesh.size)


def bytes_per_device(tree: object) -> int:
    """Return the bytes of a tree of sharded shapes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def bytes_moved(spec: StepSpec) -> float:
    """Estimate the bytes that a step moves between a device and its memory, for matrix products and AdamW only.

    Each product reads and writes its activations, and reads its whole kernel in each part of the batch. AdamW reads and
    writes the trainable parameters and their moments. All other operations are assumed to be fused with these.
    """
    settings, config, mesh = spec.settings, spec.model.config, spec.mesh
    itemsize = jnp.dtype(settings.dtype or "float32").itemsize
    total = 0.0
    state = spec.state(spec.plan.phases[-1].start)
    batch = settings.batch_size, spec.context
    for product, n_gradients, is_recomputed in passes(config, state.trainable, batch, remat=settings.remat):
        kernels = settings.accumulate * product.kernel / mesh.shape["tensor"]
        total += (1 + n_gradients + is_recomputed) * itemsize * (product.activations / mesh.size + kernels)
    return total + 2 * bytes_per_device((state.trainable, state.opt_state, state.ema))


def estimate_step_time(spec: StepSpec, topology: Topology, program: HloModule) -> StepTime:
    """Estimate the time of a step on a slice whose chip is known."""
    chip = topology.chip
    assert chip is not None
    sent = sum(kind.bytes_sent for kind in traffic_of(spec, program).values())
    return StepTime(
        compute_seconds=flops_of(spec).hardware / topology.n_chips / (ASSUMED_COMPUTE_UTILISATION * chip.flops),
        memory_seconds=bytes_moved(spec) / (ASSUMED_MEMORY_UTILISATION * chip.bandwidth / chip.cores),
        interconnect_seconds=sent / (ASSUMED_LINK_UTILISATION * chip.links / chip.cores),
    )
