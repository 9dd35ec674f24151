"""The largest batch that fits, from the memory of shallow models: to compile the whole one for each size takes hours.

What a step holds beside its state is very nearly a + b n + c B + d n B, of n blocks that are differentiated and B
sequences. Models of one and two blocks give the four numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxgpt.mesh import batch_shards
from jaxgpt.model.gpt import abstract
from jaxgpt.train.compile_only.step_time import bytes_per_device, trainable_shapes
from jaxgpt.train.step.spec import StepSpec, make_step_spec

SHALLOW_DEPTHS, SHALLOW_ROWS = (1, 2), (2, 4)
"""Depths and sequences (on each device, in each part of `--accumulate`) of the shallow models."""

Peak = Callable[[StepSpec], float | None]
"""Bytes in use on a device at the worst moment of a step of the last phase; None where it does not fit."""


@dataclass(frozen=True)
class MemoryModel:
    """How the memory of a step grows with its batch."""

    unit_rows: int
    """Sequences by which a batch can grow: one for each device that has some of its own, and for each part."""
    state_bytes: int
    """Bytes that a device holds of parameters and moments."""
    fixed_bytes: float
    """Bytes that a device needs beside them, whatever the batch."""
    unit_bytes: float
    """Bytes that it needs for each unit."""

    def bytes_needed(self, batch: int) -> float:
        """Bytes on each device for a batch of so many sequences."""
        return self.state_bytes + self.fixed_bytes + self.unit_bytes * batch / self.unit_rows

    def batch_limit(self, usable_bytes: float) -> int:
        """The largest batch that fits; 0 if none does."""
        return (
            max(0, math.floor((usable_bytes - self.state_bytes - self.fixed_bytes) / self.unit_bytes)) * self.unit_rows
        )


def fit_memory_model(spec: StepSpec, peak: Peak) -> MemoryModel | None:
    """Compiles the shallow models; None where they don't tell, because one does not fit."""
    unit_rows = batch_shards(spec.mesh) * spec.settings.accumulate
    depth = n_differentiated_blocks(spec)
    beside: dict[tuple[int, int], float] = {}
    for n in SHALLOW_DEPTHS:
        for rows in SHALLOW_ROWS:
            shallow = with_blocks(spec, n, unit_rows * rows)
            if (found := peak(shallow)) is None:
                return None
            beside[n, rows] = found - state_bytes_of(shallow)
    few, many = (beside[1, rows] + (depth - 1) * (beside[2, rows] - beside[1, rows]) for rows in SHALLOW_ROWS)
    unit_bytes = (many - few) / (SHALLOW_ROWS[1] - SHALLOW_ROWS[0])
    return MemoryModel(unit_rows, state_bytes_of(spec), few - unit_bytes * SHALLOW_ROWS[0], unit_bytes)


def n_differentiated_blocks(spec: StepSpec) -> int:
    """Number of blocks whose backward pass is run: from the lowest that trains on."""
    names = trainable_shapes(spec)
    if any(name.startswith(("tok_emb.", "pos_emb.")) for name in names):
        return spec.model.config.n_layer
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    return spec.model.config.n_layer - min(blocks, default=spec.model.config.n_layer)


def state_bytes_of(spec: StepSpec) -> int:
    """What a device holds of the state in the last phase."""
    return bytes_per_device(spec.state(spec.plan.phases[-1].start))


def with_blocks(spec: StepSpec, n: int, batch: int) -> StepSpec:
    """The specification of a model of the uppermost n blocks, of which the same trains, for another batch."""
    config = spec.model.config
    dropped = config.n_layer - n

    def lowered(name: str) -> str | None:
        if not name.startswith("blocks."):
            return name
        _, i, rest = name.split(".", 2)
        return f"blocks.{int(i) - dropped}.{rest}" if int(i) >= dropped else None

    names = [name.replace(".", r"\.") for name in map(lowered, trainable_shapes(spec)) if name]
    settings = replace(
        spec.settings, freeze=f"regex:{'|'.join(names)}", batch_size=batch, layer_lr_decay=1.0, lr_scale=()
    )
    model = abstract(replace(config, n_layer=n), dtype=spec.model.dtype)
    packed = spec.batch.segments is not None
    return make_step_spec(settings, spec.mesh, model, steps=spec.steps, packed=packed)
