"""Parameters by name: one dotted path each, spoken by dialects, freezing, weight decay, sharding and messages."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array

from jaxgpt.convert.errors import InputError

T = TypeVar("T")
Rules = tuple[tuple[str, T], ...]
"""Ordered (pattern, value): the first whose pattern matches the full name decides."""


def named_params(model: nnx.Module) -> dict[str, Array]:
    """Every parameter by its dotted name, in the order of the network: `{"tok_emb.embedding": ..., ...}`."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): param.get_value() for path, param in sorted(state, key=_network_order)}


def with_params(model: Any, params: Mapping[str, Any]) -> Any:
    """The same model with other parameters, given by name; all of them."""
    graphdef, state = nnx.split(model, nnx.Param)
    flat = nnx.to_flat_state(state)
    names = [".".join(map(str, path)) for path, _ in flat]
    if names_differ := set(names) ^ params.keys():
        raise ValueError(f"not the model's parameters: {', '.join(sorted(names_differ))}")
    pairs = [(path, param.replace(params[name])) for (path, param), name in zip(flat, names, strict=True)]
    return nnx.merge(graphdef, nnx.from_flat_state(pairs))


def count_params(model: Any) -> int:
    """Number of parameters of a model, or of a mapping from names to arrays; a tied head counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree by their paths, as JAX writes them: `[0].mu['ln_f.scale']`."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def match(rules: Rules[T], names: Iterable[str]) -> dict[str, T]:
    """What the rules say of each name.

    Raises:
        InputError: a name that no pattern matches in full.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    found: dict[str, T] = {}
    for name in names:
        hits = [value for pattern, value in compiled if pattern.fullmatch(name)]
        if not hits:
            raise InputError(f"no rule covers the parameter {name}")
        found[name] = hits[0]
    return found


def _network_order(item: tuple[tuple, Any]) -> tuple:
    order = {"tok_emb": 0, "pos_emb": 1, "blocks": 2, "ln_f": 3, "lm_head": 4}
    path = item[0]
    return (order.get(path[0], 9), *path[1:])
