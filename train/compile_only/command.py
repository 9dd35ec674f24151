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
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.shapes import shape_of_published
from jaxgpt.convert.source import BUNDLED
from jaxgpt.mesh import make_mesh
from jaxgpt.model.gpt import abstract
from jaxgpt.train.bounds import check_numbers
from jaxgpt.train.compile_only.compile_step import compile_step
from jaxgpt.train.compile_only.step_time import estimate_step_time
from jaxgpt.train.compile_only.summary import summarise
from jaxgpt.train.compile_only.topology import Topology, find_topology
from jaxgpt.train.settings import Settings
from jaxgpt.train.step.spec import STEPS, StepSpec, make_step_spec
from jaxgpt.vocab import row_multiple

DOES_NOT_FIT = 1
"""Exit code where the step needs more memory than a chip has."""


def compile_only(settings: Settings) -> int:
    """Compiles the step of the last phase, in which most trains, says what came of it, and returns the exit code."""
    check_numbers(settings)
    topology = find_topology(settings.topology)
    spec = make_spec_of_shapes(settings, topology)
    with ThreadPoolExecutor(2) as pool:  # one core compiles the step, the other the shallow models
        fitted = (
            pool.submit(fit_memory_model, spec, lambda shallow: compile_step(shallow).peak_bytes)
            if topology.usable_bytes
            else None
        )
        compiled = compile_step(spec)
        memory_model = fitted.result() if fitted else None
    fits = compiled.peak_bytes is not None and (
        topology.usable_bytes is None or compiled.peak_bytes <= topology.usable_bytes
    )
    step_time = estimate_step_time(spec, topology, compiled.program) if compiled.program and topology.chip else None
    print(summarise(spec, topology, compiled, step_time, memory_model, fits=fits))
    return 0 if fits else DOES_NOT_FIT


def make_spec_of_shapes(settings: Settings, topology: Topology) -> StepSpec:
    """The specification of the run that the settings describe, as far as it can be known without its data."""
    config = config_of(settings.model)
    mesh = make_mesh(settings.mesh, devices=topology.devices, width=config.n_embd)
    model = abstract(as_trained(config, settings, mesh), dtype=jnp.dtype(settings.dtype))
    if re.search(r"@[\d.]+ep", settings.freeze):
        raise InputError(f"--freeze={settings.freeze}: the data are not read here; say when in steps or percent")
    return make_step_spec(settings, mesh, model, steps=settings.steps or STEPS, packed=settings.rows == "packed")


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
    rows = math.ceil(tokens / row_multiple(mesh)) * row_multiple(mesh)
    return replace(config, vocab_size=rows, n_padding=rows - tokens)
