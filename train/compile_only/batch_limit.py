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
from jaxgpt.train.step.spec import Recipe, make_recipe

BLOCKS, ROWS = (1, 2), (2, 4)
"""Depths and sequences (on each device, in each part of `--accumulate`) of the shallow models."""

Peak = Callable[[Recipe], float | None]
"""Bytes in use on a device at the worst moment of a step of the last phase; None where it does not fit."""


@dataclass(frozen=True)
class Room:
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


def measure(recipe: Recipe, peak: Peak) -> Room | None:
    """Compiles the shallow models; None where they don't tell, because one does not fit."""
    unit = batch_shards(recipe.mesh) * recipe.settings.accumulate
    depth = differentiated(recipe)
    beside: dict[tuple[int, int], float] = {}
    for n in BLOCKS:
        for rows in ROWS:
            shallow = with_blocks(recipe, n, unit * rows)
            if (found := peak(shallow)) is None:
                return None
            beside[n, rows] = found - state_bytes(shallow)
    few, many = (beside[1, rows] + (depth - 1) * (beside[2, rows] - beside[1, rows]) for rows in ROWS)
    growing = (many - few) / (ROWS[1] - ROWS[0])
    return Room(unit, state_bytes(recipe), few - growing * ROWS[0], growing)


def differentiated(recipe: Recipe) -> int:
    """Number of blocks whose backward pass is run: from the lowest that trains on."""
    names = trains(recipe)
    if any(name.startswith(("tok_emb.", "pos_emb.")) for name in names):
        return recipe.model.config.n_layer
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    return recipe.model.config.n_layer - min(blocks, default=recipe.model.config.n_layer)


def state_bytes(recipe: Recipe) -> int:
    """What a device holds of the state in the last phase."""
    return held(recipe.state(recipe.plan.phases[-1].start))


def with_blocks(recipe: Recipe, n: int, batch: int) -> Recipe:
    """The recipe of a model of the uppermost n blocks, of which the same trains, for another batch."""
    config = recipe.model.config
    dropped = config.n_layer - n

    def lowered(name: str) -> str | None:
        if not name.startswith("blocks."):
            return name
        _, i, rest = name.split(".", 2)
        return f"blocks.{int(i) - dropped}.{rest}" if int(i) >= dropped else None

    names = [name.replace(".", r"\.") for name in map(lowered, trains(recipe)) if name]
    settings = replace(
        recipe.settings, freeze=f"regex:{'|'.join(names)}", batch_size=batch, layer_lr_decay=1.0, lr_scale=()
    )
    model = abstract(replace(config, n_layer=n), dtype=recipe.model.dtype)
    packed = recipe.batch.segments is not None
    return make_recipe(settings, recipe.mesh, model, steps=recipe.steps, packed=packed)
