"""A larger vocabulary for a trained model: the old rows are kept, the new ones start at their mean."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from convert.errors import InputError
from jaxgpt.model import GPT
from jaxgpt.params import named_params, with_params
from jaxgpt.pretrained import abstract


def resize_vocab(
    model: GPT, size_or_tokenizer: Any, *, init: str = "mean", pad_multiple: int = 1, seed: int = 0
) -> GPT:
    """The model with embedding rows, and rows of an untied head, for all tokens of a tokenizer.

    Args:
        size_or_tokenizer: the number of tokens, or a tokenizer that has a length.
        init: `"mean"`, the old rows' mean and noise of a hundredth of their standard deviation (Hewitt 2021:
            random rows take probability from all others); or `"normal"`, GPT-2's N(0, 0.02).
        pad_multiple: rows are rounded up to a multiple of it.
        seed: of the noise.

    Raises:
        InputError: fewer rows than the model has.
    """
    size = size_or_tokenizer if isinstance(size_or_tokenizer, int) else len(size_or_tokenizer)
    rows, old = -(-size // pad_multiple) * pad_multiple, model.config.vocab_size
    if rows < old:
        raise InputError(f"the model has {old:,} rows; {rows:,} would cut trained ones away")
    if init not in ("mean", "normal"):
        raise InputError(f"init {init!r} is not mean or normal")
    params = named_params(model)
    keys = jax.random.split(jax.random.key(seed))
    tok_emb = params["tok_emb.embedding"]
    params["tok_emb.embedding"] = _extend(tok_emb, rows - old, init, keys[0])
    if "lm_head.kernel" in params:
        params["lm_head.kernel"] = _extend(params["lm_head.kernel"].T, rows - old, init, keys[1]).T
    bigger = abstract(replace(model.config, vocab_size=rows), dtype=model.dtype, param_dtype=tok_emb.dtype)
    return with_params(bigger, params)


def _extend(table: Float[Array, "V D"], new: int, init: str, key: Array) -> Float[Array, "W D"]:
    noise = jax.random.normal(key, (new, table.shape[1]), table.dtype)
    mean, std = table.mean(0, keepdims=True), table.std(0, keepdims=True)
    return jnp.concatenate([table, 0.02 * noise if init == "normal" else mean + 0.01 * std * noise])
