"""The largest batch that fits, estimated from shallow models: compiling the whole model for each size takes hours.

What a step needs beside its state is very nearly a + b n + c B + d n B, for n differentiated blocks and B sequences.
Models of three and four blocks give the four numbers: those of fewer may have no loop over blocks (`model/scan.py`).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxgpt.freeze.strategies import LORA, NEW
from jaxgpt.loss import ROWS_AT_ONCE
from jaxgpt.mesh import batch_shards
from jaxgpt.model.gpt import abstract
from jaxgpt.training.compile_only.step_time import bytes_per_device, trainable_shapes
from jaxgpt.training.step.spec import StepSpec, make_step_spec

SHALLOW_DEPTHS = (3, 4)
"""Blocks of the shallow models."""

Peak = Callable[[StepSpec], float | None]
"""Peak bytes on a device in a step of the last phase; None where the step does not fit."""


@dataclass(frozen=True)
class MemoryModel:
    """The memory of a step as a function of its batch."""

    unit_rows: int
    """Sequences by which a batch grows: one for each device that holds its own, times the parts of `--accumulate`."""
    state_bytes: int
    """Bytes of parameters and moments on each device."""
    fixed_bytes: float
    """Other bytes on each device that do not depend on the batch."""
    unit_bytes: float
    """Bytes on each device for each unit of the batch."""

    def bytes_needed(self, batch: int) -> float:
        """Return the bytes on each device for a batch of this many sequences."""
        return self.state_bytes + self.fixed_bytes + self.unit_bytes * batch / self.unit_rows

    def batch_limit(self, usable_bytes: float) -> int:
        """Return the largest batch that fits, or 0 if none does."""
        n_units = math.floor((usable_bytes - self.state_bytes - self.fixed_bytes) / self.unit_bytes)
        return max(0, n_units) * self.unit_rows


def fit_memory_model(spec: StepSpec, peak: Peak) -> MemoryModel | None:
    """Compile the shallow models and fit their memory; return None if one of them does not fit."""
    unit_rows = batch_shards(spec.mesh) * spec.settings.accumulate
    depth = n_differentiated_blocks(spec)
    shallow_rows = rows_of_shallow_models(spec.context)
    beside_state: dict[tuple[int, int], float] = {}
    for n in SHALLOW_DEPTHS:
        for rows in shallow_rows:
            shallow = with_blocks(spec, n, unit_rows * rows)
            if (found := peak(shallow)) is None:
                return None
            beside_state[n, rows] = found - state_bytes_of(shallow)
    first, second = SHALLOW_DEPTHS
    few, many = (
        beside_state[first, rows] + (depth - first) * (beside_state[second, rows] - beside_state[first, rows])
        for rows in shallow_rows
    )
    unit_bytes = (many - few) / (shallow_rows[1] - shallow_rows[0])
    return MemoryModel(unit_rows, state_bytes_of(spec), few - unit_bytes * shallow_rows[0], unit_bytes)


def rows_of_shallow_models(context: int) -> tuple[int, int]:
    """Return two numbers of sequences on each device, in each part of `--accumulate`.

    With fewer the logits are not made in as many parts as in larger batches, and would seem to grow with the batch.
    """
    few = max(2, 4 * ROWS_AT_ONCE // context)
    return few, 2 * few


def n_differentiated_blocks(spec: StepSpec) -> int:
    """Count the blocks that have a backward pass: from the lowest trainable one up."""
    names = trainable_shapes(spec)
    if any(name.startswith(("tok_emb.", "pos_emb.")) for name in names):
        return spec.model.config.n_layer
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    return spec.model.config.n_layer - min(blocks, default=spec.model.config.n_layer)


def state_bytes_of(spec: StepSpec) -> int:
    """Return the bytes of the state on each device in the last phase."""
    return bytes_per_device(spec.state(spec.plan.phases[-1].start))


def with_blocks(spec: StepSpec, n: int, batch: int) -> StepSpec:
    """Make the specification of a model of the uppermost n blocks that trains the same parameters, for this batch."""
    config = spec.model.config
    n_dropped = config.n_layer - n

    def lowered(name: str) -> str | None:
        if not name.startswith("blocks."):
            return name
        _, i, rest = name.split(".", 2)
        return f"blocks.{int(i) - n_dropped}.{rest}" if int(i) >= n_dropped else None

    names = [name for name in map(lowered, trainable_shapes(spec)) if name]
    kinds = {"lora": re.compile(LORA), "new-tokens": re.compile(NEW)}
    parts = [kind for kind, pattern in kinds.items() if any(map(pattern.fullmatch, names))]
    if others := [re.escape(n) for n in names if not any(pattern.fullmatch(n) for pattern in kinds.values())]:
        parts.append(f"regex:{'|'.join(others)}")
    settings = replace(spec.settings, freeze="+".join(parts), batch_size=batch, layer_lr_decay=1.0, lr_scale=())
    adapted = tuple(module for module in map(lowered, config.lora.modules if config.lora else ()) if module)
    lora = replace(config.lora, modules=adapted) if config.lora and adapted else None
    model = abstract(replace(config, n_layer=n, lora=lora), dtype=spec.model.dtype)
    is_packed = spec.batch.segments is not None
    return make_step_spec(settings, spec.mesh, model, steps=spec.steps, packed=is_packed)
