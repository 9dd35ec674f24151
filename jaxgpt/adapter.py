"""Adapters beside a model's parameters: LoRA and rows of new tokens; added, so that they train alone, and merged."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt import convert
from jaxgpt.convert.adapter import LoRA, input_axes, without_adapters
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import EMBEDDING, HEAD
from jaxgpt.convert.errors import InputError
from jaxgpt.freeze.strategies import lora_of
from jaxgpt.model.gpt import GPT
from jaxgpt.model.layers import initial_adapter
from jaxgpt.params import named_params
from jaxgpt.vocab import rebuilt


def add_lora(model: GPT, lora: str | LoRA = "lora", *, seed: int = 0) -> GPT:
    """Return the model with low-rank adapters, as PEFT initialises them: A is random, and B zero.

    Logits are bitwise the model's, or with `dora` equal within rounding. To train the adapters alone, freeze the rest:
    `freeze.parse("lora", model.config)`.

    Args:
        lora: a strategy such as `"lora:r=16,on=attn+mlp"`, see `freeze.GRAMMAR`, or the adapter itself.
        seed: of A.

    Raises:
        InputError: the model has adapters already, or `lora` names none.
    """
    if model.config.lora is not None:
        raise InputError("the model has LoRA adapters already: merge_lora(model) puts them into its weights")
    found = lora_of(lora, model.config) if isinstance(lora, str) else lora
    if found is None:
        raise InputError(f"lora={lora!r} does not describe an adapter; write, for example, lora:r=8")
    params = named_params(model)
    return rebuilt(model, replace(model.config, lora=found), params | initial_lora(params, found, seed))


def initial_lora(params: Mapping[str, Array], lora: LoRA, seed: int) -> dict[str, Array]:
    """Return the parameters of new adapters by name."""
    made: dict[str, Array] = {}
    for i, module in enumerate(lora.modules):
        key = jax.random.fold_in(jax.random.key(seed), i)
        found = initial_adapter(params[f"{module}.kernel"], input_axes(module), lora, key)
        made |= {f"{module}.{name}": value for name, value in found.items()}
    return made


def separate_new_tokens(model: GPT, n_new: int) -> GPT:
    """Return the model with the rows of its last `n_new` tokens, and columns of an untied head, as own parameters."""
    config, params = model.config, named_params(model)
    first = config.n_tokens - n_new
    params["tok_emb.new"] = params[EMBEDDING][first : config.n_tokens].astype(jnp.float32)
    if not config.tie_word_embeddings:
        params["lm_head.new"] = params[HEAD][:, first : config.n_tokens].astype(jnp.float32)
    return rebuilt(model, replace(config, n_new_tokens=n_new), params)


def merge_lora(model: GPT) -> GPT:
    """Return the model with its adapters in its weights, and none beside them."""
    config = model.config
    if config.lora is None and not config.n_new_tokens:
        return model
    params = named_params(model)
    merged = convert.adapter.merged(params, config.lora, config.n_tokens)
    own: dict[str, Any] = {}
    for name in without_adapters(params):
        array = merged[name]
        own[name] = array if array is params[name] else jax.device_put(jnp.asarray(array), params[name].sharding)
    return rebuilt(model, _bare(config), own)


def _bare(config: GPTConfig) -> GPTConfig:
    return replace(config, lora=None, n_new_tokens=0)
