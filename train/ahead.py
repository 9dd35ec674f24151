"""`--compile-only`: the training step is compiled for a slice that may not be there, and what it will take is said.

Nothing is written, and neither data nor weights nor tokenizer are read.
"""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import convert
import jaxgpt
from convert.errors import InputError
from convert.shapes import shape_of_published
from convert.source import BUNDLED
from jaxgpt.mesh import make_mesh
from jaxgpt.model import abstract
from jaxgpt.vocab import VOCABULARY_MULTIPLE
from train.forecast import Forecast, forecast
from train.hlo import Program, parse
from train.largest import Room, measure
from train.ranges import check_numbers
from train.recipe import STEPS, Recipe, make_recipe
from train.settings import Settings
from train.statement import statement
from train.topology import Slice, find_slice

DOES_NOT_FIT = 1
"""Exit code where the step needs more memory than a chip has."""

LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
"""Of XLA's TPU compiler. The step of gpt2 then takes it a sixth of the time, needs 6 % more memory on v5e:2x2, and has
the same collectives; what it does not do is what would make the step fast."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step."""

    seconds: float
    memory: Any | None
    """JAX's `CompiledMemoryStats`, of one device; None where the step does not fit."""
    refusal: str | None
    """Why it does not fit, in the compiler's words."""
    program: Program | None

    @property
    def peak(self) -> int | None:
        """Bytes in use on a device at the worst moment."""
        return self.memory and self.memory.peak_memory_in_bytes


def compile_only(settings: Settings) -> int:
    """Compiles the step of the last phase, in which most trains, says what came of it, and returns the exit code."""
    check_numbers(settings)
    slice = find_slice(settings.topology)
    recipe = make_recipe_of_shapes(settings, slice)
    with ThreadPoolExecutor(2) as pool:  # one core compiles the step, the other the shallow models
        room = pool.submit(measure, recipe, lambda shallow: compile_step(shallow).peak) if slice.usable else None
        compiled = compile_step(recipe)
        found: Room | None = room and room.result()
    fits = compiled.peak is not None and (slice.usable is None or compiled.peak <= slice.usable)
    guess: Forecast | None = None
    if compiled.program and slice.chip:
        guess = forecast(recipe, slice, compiled.program)
    print(statement(recipe, slice, compiled, guess, found, fits=fits))
    return 0 if fits else DOES_NOT_FIT


def make_recipe_of_shapes(settings: Settings, slice: Slice) -> Recipe:
    """The recipe of the run that the settings describe, as far as it can be known without its data."""
    config = config_of(settings.model)
    mesh = make_mesh(settings.mesh, devices=slice.devices, width=config.n_embd)
    model = abstract(as_trained(config, settings, mesh), dtype=jnp.dtype(settings.dtype))
    return make_recipe(settings, mesh, model, steps=settings.steps or STEPS, packed=settings.rows == "packed")


def config_of(model: str) -> jaxgpt.GPTConfig:
    """The shape of a checkpoint that is here, or of a published one."""
    is_here = model in BUNDLED or Path(model).expanduser().exists()
    return (None if is_here else shape_of_published(model)) or convert.read(model).config


def as_trained(config: jaxgpt.GPTConfig, settings: Settings, mesh: Mesh) -> jaxgpt.GPTConfig:
    """With the changes that a run makes to a model before it trains: dropout, head, and rows for tokens."""
    if (p := settings.dropout) is not None:
        config = replace(config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
    if settings.untie_head:
        config = replace(config, tie_word_embeddings=False)
    tokens = config.n_tokens + len(settings.add_tokens.split(",") if settings.add_tokens else ())
    if tokens == config.n_tokens and config.vocab_size % mesh.shape["tensor"] == 0:
        return config
    rows = math.ceil(tokens / (multiple := math.lcm(VOCABULARY_MULTIPLE, mesh.shape["tensor"]))) * multiple
    return replace(config, vocab_size=rows, n_padding=rows - tokens)


def compile_step(recipe: Recipe) -> Compiled:
    """Compiles the step of the last phase.

    Raises:
        InputError: the compiler refuses it for another reason than its memory.
    """
    began, lowered = time.perf_counter(), recipe.lower(recipe.plan.phases[-1])
    options = LEAST_EFFORT if recipe.mesh.devices.flat[0].platform == "tpu" else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise InputError(f"the compiler refuses the step: {str(error).splitlines()[0]}") from None
        seconds = time.perf_counter() - began
        return Compiled(seconds, None, re.sub(r"^RESOURCE_EXHAUSTED: ", "", str(error).splitlines()[0]), None)
    seconds = time.perf_counter() - began
    return Compiled(seconds, compiled.memory_analysis(), None, parse(compiled.as_text()))
