"""Another vocabulary for a trained model: more tokens, rows that are padding, a head of its own."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import EMBEDDING, HEAD, HEAD_BIAS
from jaxgpt.convert.errors import InputError
from jaxgpt.mesh import shardings
from jaxgpt.model.gpt import GPT, abstract
from jaxgpt.params import named_params, with_params
from jaxgpt.tokenizer import check_vocabulary, decide_ids, vocabulary_size

VOCABULARY_MULTIPLE = 128
"""A vocabulary that is padded at all is padded to a multiple of this: matrix units want it, and so do meshes."""


def resize_vocab(
    model: GPT, size_or_tokenizer: Any, *, init: str = "mean", pad_multiple: int = 1, seed: int = 0
) -> GPT:
    """Return the model with embedding rows, and rows of an untied head, for all tokens of a tokenizer.

    Rows of the model's tokens stay as they are, bit by bit. Rows that were padding count as new where they become
    tokens, and are dropped where `pad_multiple` leaves no room for them. Those that fill up to `pad_multiple` are the
    mean of the old ones: to a program that does not mask them, each is at most as likely as the average token.

    Args:
        size_or_tokenizer: the number of tokens, or a tokenizer, which has as many as its largest id + 1.
        init: of new tokens. `"mean"`, the old rows' mean and noise of a hundredth of their standard deviation
            (Hewitt 2021: random rows take probability from all others); or `"normal"`, GPT-2's N(0, 0.02).
        pad_multiple: the number of rows is rounded up to a multiple of it, with padding.
        seed: of the noise.

    Raises:
        InputError: fewer tokens than the model has, or neither a tokenizer nor a number of tokens.
    """
    config, size = model.config, _size(size_or_tokenizer)
    if init not in ("mean", "normal"):
        raise InputError(f"init must be 'mean' or 'normal', not {init!r}")
    if not _is_int(pad_multiple) or not 1 <= pad_multiple <= 2**31:
        raise InputError(f"pad_multiple must be an integer from 1 to 2^31, not {pad_multiple!r}")
    if not _is_int(seed) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be an integer from 0 to 2^32 - 1, not {seed!r}")
    if config.lora is not None or config.n_new_tokens:
        raise InputError("a model with adapters can't be resized: jaxgpt.merge_lora(model) puts them into its weights")
    if size < config.n_tokens:
        raise InputError(
            f"the model has {config.n_tokens:,} tokens; resizing to {size:,} would delete trained rows "
            "(if the last rows are padding, mark them first: jaxgpt.vocab.mark_padding(model, tokenizer))"
        )
    rows = -(-size // int(pad_multiple)) * int(pad_multiple)
    resized = replace(config, vocab_size=rows, n_padding=rows - size)
    if resized == config:
        return model
    resize = partial(_resized, old=config.n_tokens, size=size, rows=rows, init=init)
    return rebuilt(model, resized, _map_tables(resize, named_params(model), jax.random.key(int(seed))))


def row_multiple(mesh: Mesh) -> int:
    """Return the multiple that the number of rows is rounded up to, where a vocabulary is padded for a mesh."""
    return math.lcm(VOCABULARY_MULTIPLE, mesh.shape["tensor"])


def pad_vocab(model: GPT, mesh: Mesh) -> GPT:
    """Pad the vocabulary with as many rows as it takes to split it over the mesh's `tensor`."""
    config, tensor = model.config, mesh.shape["tensor"]
    if config.vocab_size % tensor == 0:
        return model
    model = resize_vocab(model, config.n_tokens, pad_multiple=row_multiple(mesh))
    params = named_params(model)
    return with_params(model, jax.device_put(params, shardings(params, mesh)))


def fill_padding(params: Mapping[str, Array], config: GPTConfig) -> dict[str, Array]:
    """Return the parameters with rows of padding as `resize_vocab` makes them, with the same shardings."""
    tokens = config.n_tokens
    fill = partial(_resized, old=tokens, size=tokens, rows=config.vocab_size, init="mean")
    filled = _map_tables(fill, params, jax.random.key(0))
    return {name: jax.device_put(array, params[name].sharding) for name, array in filled.items()}


def mark_padding(model: GPT, size_or_tokenizer: Any) -> GPT:
    """Mark the rows beyond the tokenizer's tokens as padding in the config; parameters stay the same.

    For checkpoints that can't say so themselves, such as nanoGPT's: 50,304 rows for GPT-2's 50,257 tokens.

    Raises:
        InputError: more tokens than the model has, or neither a tokenizer nor a number of tokens.
    """
    config, size = model.config, _size(size_or_tokenizer)
    if size > config.n_tokens:
        raise InputError(
            f"the tokenizer has {size:,} tokens, the model only {config.n_tokens:,} embedding rows for tokens: "
            "use the tokenizer that the model was trained with, or extend the model with jaxgpt.resize_vocab"
        )
    marked = replace(config, n_padding=config.vocab_size - size)
    return model if marked == config else rebuilt(model, marked, named_params(model))


def match_tokenizer(model: GPT, tokenizer: Any) -> tuple[GPT, str]:
    """Return the model as it is to be used with a tokenizer, and a line that says what ends a text.

    Rows without a token are marked as padding, and the ids that begin and end a text are decided; see `decide_ids`.

    Raises:
        InputError: the tokenizer does not belong to the model.
    """
    check_vocabulary(tokenizer, model.config)
    model = mark_padding(model, tokenizer)
    config, said = decide_ids(model.config, tokenizer)
    return (model if config == model.config else rebuilt(model, config, named_params(model))), said


def untie_head(model: GPT) -> GPT:
    """Give the model an output head of its own, at first a copy of the token embedding; an untied one stays."""
    if not model.config.tie_word_embeddings:
        return model
    if model.config.n_new_tokens:
        raise InputError(
            "the rows of new tokens are still apart from the embedding: merge them first, with jaxgpt.merge_lora(model)"
        )
    params = named_params(model)
    params[HEAD] = params[EMBEDDING].T  # in JAX a copy, not a view
    return rebuilt(model, replace(model.config, tie_word_embeddings=False), params)


def rebuilt(model: GPT, config: GPTConfig, params: dict[str, Array]) -> GPT:
    """Return the model with another config and the parameters for that."""
    dtypes = {"dtype": model.dtype, "param_dtype": params[EMBEDDING].dtype}
    return with_params(abstract(config, **dtypes), params)


def _map_tables(resize: Callable, params: Mapping[str, Array], key: Array) -> dict[str, Array]:
    """Resize every parameter that has a row, a column or a number for each token."""
    keys, resized = jax.random.split(key), dict(params)
    if EMBEDDING in params:
        resized[EMBEDDING] = resize(params[EMBEDDING], keys[0])
    if HEAD in params:
        resized[HEAD] = resize(params[HEAD].T, keys[1]).T
    if HEAD_BIAS in params:
        resized[HEAD_BIAS] = resize(params[HEAD_BIAS][:, None], jax.random.fold_in(keys[1], 1))[:, 0]
    return resized


@partial(jax.jit, static_argnames=("old", "size", "rows", "init"))
def _resized(
    table: Float[Array, "V D"], key: Array, *, old: int, size: int, rows: int, init: str
) -> Float[Array, "rows D"]:
    """Return the first `old` rows, then new tokens' up to `size`, then padding.

    Statistics are computed in float32 from the old rows.
    """
    kept, width = table[:old], table.shape[1]
    mean = kept.mean(0, dtype=jnp.float32, keepdims=True)
    noise = jax.random.normal(key, (size - old, width), jnp.float32)
    new = 0.02 * noise if init == "normal" else mean + 0.01 * kept.std(0, dtype=jnp.float32, keepdims=True) * noise
    padding = jnp.broadcast_to(mean, (rows - size, width))
    return jnp.concatenate([kept, new.astype(table.dtype), padding.astype(table.dtype)])


def _size(size_or_tokenizer: Any) -> int:
    size = vocabulary_size(size_or_tokenizer) if hasattr(size_or_tokenizer, "get_vocab") else size_or_tokenizer
    if not _is_int(size) or not 1 <= size <= 2**31:
        raise InputError(f"the vocabulary must be a tokenizer, or a number of tokens from 1 to 2^31, not {size!r}")
    return int(size)


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
