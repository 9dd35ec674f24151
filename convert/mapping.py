"""From their tensors to our parameters and back, by a dialect's table, with none missing and none left over."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import EMBEDDING, HEAD, HEAD_BIAS, Dialect, Tensors, problem_list
from jaxgpt.convert.layout import LazyArray, relayout, shape_of, swap

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


def to_ours(dialect: Dialect, tensors: Tensors, config: GPTConfig) -> tuple[dict[str, Any], GPTConfig]:
    """Make our parameters from their tensors, and complete the config: only the tensors tell whether a head is tied.

    Raises:
        InputError: lists every tensor that is missing or unknown, or whose shape differs from the config's.
    """
    tensors = dialect.bare_names(tensors)
    tensors, config = _settle_head(dialect, tensors, config)
    rows, dims = list(dialect.expand(config)), config.dims
    zeros = [row for row in rows if row.may_lack and not any(name in tensors for name in row.names)]
    rows = [row for row in rows if row not in zeros]
    expected = {name: shape_of(row.left, dims) for row in rows for name in row.names}
    buffers = dialect.buffers_in(tensors, config)
    problems = list(_differences(tensors, expected, ignore=buffers))
    problems += [
        f"dtype: {name} is {tensors[name].dtype}, not a floating-point type"
        for name, shape in expected.items()
        if name in tensors
        and tuple(tensors[name].shape) == shape
        and np.dtype(tensors[name].dtype).name not in FLOAT_DTYPES
    ]
    if problems:
        said = "" if config.model_type == "gpt2" else f" (its config says {config.model_type})"
        raise problem_list(f"not a complete checkpoint of {dialect.title}{said}", problems)
    params = {row.ours: relayout(_gather(tensors, row.theirs), row.layout, dims) for row in rows}
    dtype = next(iter(params.values())).dtype
    params |= {row.ours: np.zeros(shape_of(row.right, dims), dtype) for row in zeros}
    return {row.ours: params[row.ours] for row in dialect.expand(config)}, config


def to_theirs(dialect: Dialect, params: Tensors, config: GPTConfig) -> dict[str, Any]:
    """Make their tensors, with the prefix, from our parameters; as strict as `to_ours`."""
    check_params(params, config, dialect)
    tensors = {}
    for row in dialect.expand(config):
        prefix = "" if row.ours in (HEAD, HEAD_BIAS) else dialect.prefix
        array = relayout(params[row.ours], swap(row.layout), config.dims)
        if isinstance(row.theirs, str):
            tensors[prefix + row.theirs] = array
        else:
            tensors |= {prefix + name: _part(array, i) for i, name in enumerate(row.theirs)}
    if config.tie_word_embeddings and dialect.writes_tied_head:
        (head,), (embedding,) = dialect.row(HEAD).names, dialect.row(EMBEDDING).names
        tensors[head] = tensors[dialect.prefix + embedding]
    return tensors


def check_params(params: Tensors, config: GPTConfig, dialect: Dialect) -> None:
    """Refuse parameters whose names or shapes differ from the config's."""
    ours = {row.ours: shape_of(row.right, config.dims) for row in dialect.expand(config)}
    if problems := list(_differences(params, ours)):
        raise problem_list("the parameters do not fit the config", problems)


def same(a: Any, b: Any) -> bool:
    """Tell whether two arrays are bitwise equal, including NaNs and signed zeros."""
    if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        return False
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.__array_interface__ == b.__array_interface__:
        return True  # the same bytes of the same file, as of a tied head: no need to read them
    return bool(np.array_equal(_bits(np.asarray(a)), _bits(np.asarray(b))))


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize in (1, 2, 4, 8) else array


def _differences(tensors: Tensors, expected: dict[str, tuple], ignore: Any = ()) -> Iterator[str]:
    yield from (f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors)
    for name, array in tensors.items():
        if name not in expected and name not in ignore:
            yield f"unknown: {name} {tuple(array.shape)}"
        elif name in expected and tuple(array.shape) != expected[name]:
            yield f"shape: {name} is {tuple(array.shape)}, the config says {expected[name]}"


def _gather(tensors: Tensors, theirs: str | tuple[str, ...]) -> Any:
    if isinstance(theirs, str):
        return tensors[theirs]
    parts = [tensors[name] for name in theirs]
    return LazyArray((len(parts), *parts[0].shape), parts[0].dtype, lambda: np.stack([np.asarray(p) for p in parts]))


def _part(array: Any, i: int) -> Any:
    """Return one of the tensors that were stacked to an array."""
    if isinstance(array, np.ndarray):
        return array[i]
    return LazyArray(tuple(array.shape[1:]), array.dtype, lambda: np.asarray(array)[i])


def _settle_head(dialect: Dialect, tensors: dict[str, Any], config: GPTConfig) -> tuple[dict[str, Any], GPTConfig]:
    """Tie the head or not: by the tensors that are there or, if both are and are equal, by the config."""
    (embedding,), (head,) = dialect.row(EMBEDDING).names, dialect.row(HEAD).names
    if embedding == EMBEDDING or head not in tensors or not config.tie_word_embeddings:  # our own config states it
        return tensors, config
    if dialect.row(HEAD).left != dialect.row(EMBEDDING).left:  # Flax's, which is there only where it is not tied
        return tensors, replace(config, tie_word_embeddings=False)
    rest = {name: array for name, array in tensors.items() if name != head}
    if embedding not in tensors:  # the file has the shared matrix under the head's name only
        return {embedding: tensors[head], **rest}, config
    if same(tensors[embedding], tensors[head]):
        return rest, config
    return tensors, replace(config, tie_word_embeddings=False)
