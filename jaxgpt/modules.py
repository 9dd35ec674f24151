"""Modules, as people speak of them: `tok_emb`, `blocks.3`, `ln_f`, each a group of parameters."""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.params import count_params


def module_of(name: str) -> str:
    """`blocks.3` for `blocks.3.attn.c_attn.kernel`, `tok_emb` for `tok_emb.embedding`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


def by_module(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of each module, in the order in which the modules come first."""
    modules: dict[str, dict[str, Any]] = {}
    for name, param in params.items():
        modules.setdefault(module_of(name), {})[name] = param
    return modules


def shares(part: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, float]:
    """Of each module of `params`, the fraction of its parameters that `part` has: 0, 1 or between."""
    here = by_module(part)
    return {
        module: count_params(here.get(module, {})) / count_params(whole) for module, whole in by_module(params).items()
    }


def names(part: Mapping[str, Any], params: Mapping[str, Any], config: GPTConfig) -> str:
    """`tok_emb (also the head: tied), blocks.0-5`: neighbouring blocks joined, incomplete modules marked."""
    whole, here = Counter(map(module_of, params)), Counter(map(module_of, part))

    def mark(module: str) -> str:
        tied = " (also the head: tied)" if module == "tok_emb" and config.tie_word_embeddings else ""
        return tied + (f" ({here[module]} of {whole[module]} tensors)" if here[module] < whole[module] else "")

    def run(item: tuple[int, str]) -> tuple:
        # blocks of one run have the same difference between number and place, and the same mark
        place, module = item
        block = int(module.removeprefix("blocks.")) - place if module.startswith("blocks.") else module
        return block, mark(module)

    texts = []
    for (_, marked), group in groupby(enumerate(module for module in whole if here[module]), key=run):
        first, *_, last = (pair := [module for _, module in group])[0], pair[-1]
        texts.append(first + (f"-{last.removeprefix('blocks.')}" if last != first else "") + marked)
    return ", ".join(texts) or "nothing"
