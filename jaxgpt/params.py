"""Parameters by name: one dotted path each, used by dialects, freezing, weight decay, sharding and messages.

A module is a group of them, as people speak of it: `tok_emb`, `blocks.3`, `ln_f`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.errors import InputError
from jaxgpt.int8 import Int8Kernel
from jaxgpt.patterns import Pattern

T = TypeVar("T")
Rules = tuple[tuple[str, T], ...]
"""Ordered (pattern, value): the first whose pattern matches the full name decides."""

_ROWS = [row.ours for row in JAXGPT.rows]
_PLACES = {name: i for i, name in enumerate(_ROWS)}
_FIRST_OF_BLOCKS = next(i for i, name in enumerate(_ROWS) if "{i}" in name)


def named_params(model: nnx.Module) -> dict[str, Array]:
    """Return every parameter by its dotted name, in the order of the network: `{"tok_emb.embedding": ..., ...}`."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    params = {".".join(map(str, path)): param.get_value() for path, param in state}
    return {name: params[name] for name in sorted(params, key=_network_order)}


def with_params(model: Any, params: Mapping[str, Any]) -> Any:
    """Return the same model with other parameters, given by name; all of them."""
    graphdef, state = nnx.split(model, nnx.Param)
    flat = nnx.to_flat_state(state)
    names = [".".join(map(str, path)) for path, _ in flat]
    if names_differ := set(names) ^ params.keys():
        raise ValueError(
            f"these names are missing from the parameters, or unknown to the model: {', '.join(sorted(names_differ))}"
        )
    pairs = [(path, param.replace(params[name])) for (path, param), name in zip(flat, names, strict=True)]
    return nnx.merge(graphdef, nnx.from_flat_state(pairs))


def count_params(model: Any) -> int:
    """Count the parameters of a model, or of a mapping from names to arrays; a tied head counts once.

    The scales of kernels in 8 bits are none.
    """
    leaves = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, Int8Kernel))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def param_name(path: tuple) -> str:
    """Return a parameter's dotted name from its path in a pytree of parameters, a model or a dict by name."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of any pytree by their paths as JAX writes them, such as `[0].mu['ln_f.scale']`.

    Checkpoints on disk name the optimizer's state so.
    """
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def match(rules: Rules[T], names: Iterable[str]) -> dict[str, T]:
    """Return the value that the rules give to each name.

    Raises:
        InputError: a name that no pattern matches in full.
    """
    names = list(names)
    found: dict[str, T] = {}
    for pattern, value in rules:
        found |= dict.fromkeys(Pattern(pattern).matching(name for name in names if name not in found), value)
    for name in names:
        if name not in found:
            raise InputError(f"no pattern of the rules matches the parameter {name}")
    return {name: found[name] for name in names}


def module_of(name: str) -> str:
    """Return `blocks.3` for `blocks.3.attn.c_attn.kernel`, `tok_emb` for `tok_emb.embedding`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


def by_module(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of each module, in the order in which the modules come first."""
    modules: dict[str, dict[str, Any]] = {}
    for name, param in params.items():
        modules.setdefault(module_of(name), {})[name] = param
    return modules


def module_shares(part: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, float]:
    """Return for each module of `params` the fraction of its parameters that `part` has: 0, 1 or between."""
    here = by_module(part)
    return {
        module: count_params(here.get(module, {})) / count_params(whole) for module, whole in by_module(params).items()
    }


def list_modules(part: Mapping[str, Any], params: Mapping[str, Any], config: GPTConfig) -> str:
    """Return the modules of `part` as text, such as `tok_emb (also the head: tied), blocks.0-5`.

    Neighbouring blocks are joined, and modules of which `part` has only some tensors of `params` are marked.
    """
    whole, here = Counter(map(module_of, params)), Counter(map(module_of, part))

    def mark(module: str) -> str:
        tied = " (also the head: tied)" if module == "tok_emb" and config.tie_word_embeddings else ""
        return tied + (f" ({here[module]} of {whole[module]} tensors)" if here[module] < whole[module] else "")

    def joined_by(item: tuple[int, str]) -> tuple:
        # blocks that follow one another have the same difference between number and index; their marks must be equal
        index, module = item
        block = int(module.removeprefix("blocks.")) - index if module.startswith("blocks.") else module
        return block, mark(module)

    texts = []
    for (_, marked), group in groupby(enumerate(module for module in whole if here[module]), key=joined_by):
        modules = [module for _, module in group]
        first, last = modules[0], modules[-1]
        texts.append(first + (f"-{last.removeprefix('blocks.')}" if last != first else "") + marked)
    return ", ".join(texts) or "nothing"


def _network_order(name: str) -> tuple:
    """Return a key that sorts names as the rows of our own dialect's table stand, block by block."""
    parts = name.split(".")
    if parts[0] == "blocks":
        row = ".".join(["blocks", "{i}", *parts[2:]])
        return _FIRST_OF_BLOCKS, int(parts[1]), _PLACES.get(row, len(_PLACES)), name
    return _PLACES.get(name, len(_PLACES)), 0, 0, name
