"""A model whose kernels are in 8 bits, for text at batch 1: each token reads a quarter of the bytes."""

import jax

from jaxgpt.adapter import merge_lora
from jaxgpt.convert.adapter import input_axes
from jaxgpt.convert.dialect import HEAD
from jaxgpt.int8 import Int8Kernel, quantise
from jaxgpt.model.gpt import GPT
from jaxgpt.params import named_params, with_params
from jaxgpt.vocab import untie_head


def quantise_model(model: GPT) -> GPT:
    """Return the model with the kernels of its linear layers and its output head in 8 bits, a scale for each output.

    Adapters and rows of new tokens are merged first. A tied head becomes one of its own, so that embeddings, of which
    a token reads one row, stay as they are; so do biases and norms. The result can't be saved, and is not for training.
    """
    model = untie_head(merge_lora(model))
    params = named_params(model)
    for name, param in params.items():
        if name.endswith(".kernel") and not isinstance(param, Int8Kernel):
            params[name] = jax.block_until_ready(quantise(param, input_axes(name.removesuffix(".kernel"))))
    return with_params(model, params)


def is_quantised(model: GPT) -> bool:
    """Return whether a model's head is in 8 bits, as `quantise_model` leaves it."""
    return isinstance(named_params(model).get(HEAD), Int8Kernel)
