"""`--compile-only`: compile the training step, also for a slice that does not exist, and describe it.

It writes nothing, and reads neither data nor weights nor tokenizer.
"""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax.numpy as jnp
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import InputError, about, escaped
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.convert.published import config_of_published
from jaxgpt.convert.source import BUNDLED
from jaxgpt.freeze.strategies import names_new_tokens, with_lora
from jaxgpt.mesh import make_mesh, usual_dtype
from jaxgpt.model.gpt import abstract
from jaxgpt.training.command import check_settings
from jaxgpt.training.compile_only.batch_limit import fit_memory_model
from jaxgpt.training.compile_only.compile_step import compile_step
from jaxgpt.training.compile_only.step_time import estimate_step_time
from jaxgpt.training.compile_only.summary import does_fit, summarise
from jaxgpt.training.compile_only.topology import Topology, find_topology
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.spec import STEPS, StepSpec, make_step_spec
from jaxgpt.vocab import row_multiple


def compile_only(settings: Settings) -> int:
    """Compile the step of the last phase, in which most trains, print its summary, and return the exit code."""
    check_settings(settings)
    topology = find_topology(settings.topology)
    spec = make_spec_of_shapes(settings, topology)
    with ThreadPoolExecutor(2) as pool:  # one thread compiles the step, the other the shallow models
        fitted = None
        if topology.chip:
            fitted = pool.submit(fit_memory_model, spec, lambda shallow: compile_step(shallow).peak_bytes)
        compiled = compile_step(spec)
        memory_model = fitted.result() if fitted else None
    step_time = None
    if compiled.program and topology.chip:
        step_time = estimate_step_time(spec, topology, compiled.program)
    print(escaped(summarise(spec, topology, compiled, step_time, memory_model), keep="\n"))
    return ExitCode.FAILED if does_fit(topology, compiled) is False else ExitCode.OK


def make_spec_of_shapes(settings: Settings, topology: Topology) -> StepSpec:
    """Make the specification of the run that the settings describe, as far as it is known without the data."""
    config = config_of(settings)
    settings = replace(settings, dtype=settings.dtype or usual_dtype(topology.devices[0], config.n_embd))
    with about("--mesh"):
        mesh = make_mesh(settings.mesh, devices=topology.devices, width=config.n_embd)
    model = abstract(as_trained(config, settings, mesh), dtype=jnp.dtype(settings.dtype or "float32"))
    if re.search(r"@[\d.]+ep", settings.freeze):
        raise InputError(
            f"--freeze={settings.freeze}: epochs are unknown because --compile-only reads no data; use steps or percent"
        )
    is_packed = settings.rows == "packed"
    return make_step_spec(settings, mesh, model, steps=settings.steps or STEPS, packed=is_packed)


def config_of(settings: Settings) -> jaxgpt.GPTConfig:
    """Return the shape of a published model, or of a checkpoint that is here."""
    model = settings.model
    is_here = model in BUNDLED or local_path(model).exists()
    return (None if is_here else config_of_published(model)) or convert.read(model, **settings.how_to_read).config


def as_trained(config: jaxgpt.GPTConfig, settings: Settings, mesh: Mesh) -> jaxgpt.GPTConfig:
    """Apply the changes that a run makes to a model before it trains: dropout, head, and rows for tokens."""
    if (p := settings.dropout) is not None:
        config = replace(config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
    if settings.untie_head:
        config = replace(config, tie_word_embeddings=False)
    n_added = len(settings.add_tokens.split(",")) if settings.add_tokens else 0
    with about("--freeze"):
        config = with_lora(settings.freeze, replace(config, lora=None, n_new_tokens=0))
    if names_new_tokens(settings.freeze):
        config = replace(config, n_new_tokens=n_added)
    if not n_added and config.vocab_size % mesh.shape["tensor"] == 0:
        return config
    n_tokens = config.n_tokens + n_added
    n_rows = math.ceil(n_tokens / row_multiple(mesh)) * row_multiple(mesh)
    return replace(config, vocab_size=n_rows, n_padding=n_rows - n_tokens)
