"""The largest batch that fits, from the memory of shallow models: to compile the whole one for each size takes hours.

What a step holds beside its state is very nearly a + b n + c B + d n B, of n blocks that are differentiated and B
sequences. Models of one and two blocks give the four numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxgpt.mesh import batch_shards
from jaxgpt.model.gpt import abstract
from jaxgpt.train.compile_only.step_time import held, trains
from jaxgpt.train.step.spec import StepSpec, make_step_spec

BLOCKS, ROWS = (1, 2), (2, 4)
"""Depths and sequences (on each device, in each part of `--accumulate`) of the shallow models."""

Peak = Callable[[StepSpec], float | None]
"""Bytes in use on a device at the worst moment of a step of the last phase; None where it does not fit."""


@dataclass(frozen=True)
class MemoryModel:
    """How the memory of a step grows with its batch."""

    unit: int
    """Sequences by which a batch can grow: one for each device that has some of its own, and for each part."""
    state: int
    """Bytes that a device holds of parameters and moments."""
    fixed: float
    """Bytes that a device needs beside them, whatever the batch."""
    growing: float
    """Bytes that it needs for each unit."""

    def needs(self, batch: int) -> float:
        """Bytes on each device for a batch of so many sequences."""
        return self.state + self.fixed + self.growing * batch / self.unit

    def largest(self, usable: float) -> int:
        """The largest batch that fits; 0 if none does."""
        return max(0, math.floor((usable - self.state - self.fixed) / self.growing)) * self.unit


def measure(spec: StepSpec, peak: Peak) -> MemoryModel | None:
    """Compiles the shallow models; None where they don't tell, because one does not fit."""
    unit = batch_shards(spec.mesh) * spec.settings.accumulate
    depth = differentiated(spec)
    beside: dict[tuple[int, int], float] = {}
    for n in BLOCKS:
        for rows in ROWS:
            shallow = with_blocks(spec, n, unit * rows)
            if (found := peak(shallow)) is None:
                return None
            beside[n, rows] = found - state_bytes(shallow)
    few, many = (beside[1, rows] + (depth - 1) * (beside[2, rows] - beside[1, rows]) for rows in ROWS)
    growing = (many - few) / (ROWS[1] - ROWS[0])
    return MemoryModel(unit, state_bytes(spec), few - growing * ROWS[0], growing)


def differentiated(spec: StepSpec) -> int:
    """Number of blocks whose backward pass is run: from the lowest that trains on."""
    names = trains(spec)
    if any(name.startswith(("tok_emb.", "pos_emb.")) for name in names):
        return spec.model.config.n_layer
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    return spec.model.config.n_layer - min(blocks, default=spec.model.config.n_layer)


def state_bytes(spec: StepSpec) -> int:
    """What a device holds of the state in the last phase."""
    return held(spec.state(spec.plan.phases[-1].start))


def with_blocks(spec: StepSpec, n: int, batch: int) -> StepSpec:
    """The specification of a model of the uppermost n blocks, of which the same trains, for another batch."""
    config = spec.model.config
    dropped = config.n_layer - n

    def lowered(name: str) -> str | None:
        if not name.startswith("blocks."):
            return name
        _, i, rest = name.split(".", 2)
        return f"blocks.{int(i) - dropped}.{rest}" if int(i) >= dropped else None

    names = [name.replace(".", r"\.") for name in map(lowered, trains(spec)) if name]
    settings = replace(
        spec.settings, freeze=f"regex:{'|'.join(names)}", batch_size=batch, layer_lr_decay=1.0, lr_scale=()
    )
    model = abstract(replace(config, n_layer=n), dtype=spec.model.dtype)
    packed = spec.batch.segments is not None
    return make_step_spec(settings, spec.mesh, model, steps=spec.steps, packed=packed)
