"""`--compile-only`: the training step is compiled for a slice that may not be there, and what it will take is said.

Nothing is written, and neither data nor weights nor tokenizer are read.
"""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.errors import InputError, about
from jaxgpt.convert.published import config_of_published
from jaxgpt.convert.source import BUNDLED
from jaxgpt.mesh import make_mesh
from jaxgpt.model.gpt import abstract
from jaxgpt.train.bounds import check_numbers
from jaxgpt.train.compile_only.batch_limit import measure
from jaxgpt.train.compile_only.compile_step import compile_step
from jaxgpt.train.compile_only.step_time import estimate_step_time
from jaxgpt.train.compile_only.summary import statement
from jaxgpt.train.compile_only.topology import Topology, find_topology
from jaxgpt.train.settings import Settings
from jaxgpt.train.step.spec import STEPS, StepSpec, make_step_spec
from jaxgpt.vocab import row_multiple

DOES_NOT_FIT = 1
"""Exit code where the step needs more memory than a chip has."""


def compile_only(settings: Settings) -> int:
    """Compiles the step of the last phase, in which most trains, says what came of it, and returns the exit code."""
    check_numbers(settings)
    slice = find_topology(settings.topology)
    spec = make_spec_of_shapes(settings, slice)
    with ThreadPoolExecutor(2) as pool:  # one core compiles the step, the other the shallow models
        measured = pool.submit(measure, spec, lambda shallow: compile_step(shallow).peak) if slice.usable else None
        compiled = compile_step(spec)
        room = measured.result() if measured else None
    fits = compiled.peak is not None and (slice.usable is None or compiled.peak <= slice.usable)
    guess = estimate_step_time(spec, slice, compiled.program) if compiled.program and slice.chip else None
    print(statement(spec, slice, compiled, guess, room, fits=fits))
    return 0 if fits else DOES_NOT_FIT


def make_spec_of_shapes(settings: Settings, slice: Topology) -> StepSpec:
    """The specification of the run that the settings describe, as far as it can be known without its data."""
    config = config_of(settings.model)
    with about("--mesh"):
        mesh = make_mesh(settings.mesh, devices=slice.devices, width=config.n_embd)
    model = abstract(as_trained(config, settings, mesh), dtype=jnp.dtype(settings.dtype))
    if re.search(r"@[\d.]+ep", settings.freeze):
        raise InputError(f"--freeze={settings.freeze}: the data are not read here; say when in steps or percent")
    return make_step_spec(settings, mesh, model, steps=settings.steps or STEPS, packed=settings.rows == "packed")


def config_of(model: str) -> jaxgpt.GPTConfig:
    """The shape of a checkpoint that is here, or of a published one."""
    is_here = model in BUNDLED or Path(model).expanduser().exists()
    return (None if is_here else config_of_published(model)) or convert.read(model).config


def as_trained(config: jaxgpt.GPTConfig, settings: Settings, mesh: Mesh) -> jaxgpt.GPTConfig:
    """With the changes that a run makes to a model before it trains: dropout, head, and rows for tokens."""
    if (p := settings.dropout) is not None:
        config = replace(config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
    if settings.untie_head:
        config = replace(config, tie_word_embeddings=False)
    tokens = config.n_tokens + len(settings.add_tokens.split(",") if settings.add_tokens else ())
    if tokens == config.n_tokens and config.vocab_size % mesh.shape["tensor"] == 0:
        return config
    rows = math.ceil(tokens / row_multiple(mesh)) * row_multiple(mesh)
    return replace(config, vocab_size=rows, n_padding=rows - tokens)
