"""Which parameters train: strategies by name, as labels for `optax.multi_transform`.

Frozen is free when the trainable part alone is differentiated:

    plan = freeze.parse("first6", model.config)
    trainable, frozen = plan.partition(named_params(model))
    tx = freeze.optimizer(plan, trainable, optax.adamw(1e-4))
    grads = jax.grad(lambda t: loss(with_params(model, t | frozen), tokens))(trainable)
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

from convert.config import GPTConfig
from convert.dialects.jaxgpt import JAXGPT
from convert.errors import InputError
from jaxgpt.params import Rules, count_params, match

TRAIN, FROZEN = "train", "frozen"

GRAMMAR = r"""A freezing strategy is one of
  full            everything trains
  firstN          the embeddings and the first N blocks are frozen, as in first6
  lastN           only the last N blocks, ln_f and an untied head train, as in last3
  head            only the head trains; a tied head is the token embedding
  embeddings      only the token and position embeddings train
  regex:PATTERN   only parameters whose whole name matches train, as in regex:blocks\.\d+\.mlp\..*"""

EMBEDDINGS = r"(tok_emb|pos_emb)\..*"


@dataclass(frozen=True)
class Plan:
    """A parsed strategy: ordered (pattern, label) rules over parameter names."""

    text: str
    rules: Rules[str]

    def labels(self, params: Mapping[str, Any]) -> dict[str, str]:
        """`"train"` or `"frozen"` for every name."""
        return match(self.rules, params)

    def partition(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters that train, and those that are frozen."""
        labels = self.labels(params)
        trainable = {name: p for name, p in params.items() if labels[name] == TRAIN}
        return trainable, {name: p for name, p in params.items() if labels[name] == FROZEN}

    def describe(self, params: Mapping[str, Any], config: GPTConfig) -> str:
        """Two lines for a person: what trains and what is frozen, with counts."""
        total, lines = count_params(params), []
        for word, part in zip(("trains", "frozen"), self.partition(params), strict=True):
            count = count_params(part)
            groups = _groups(part, params, config) or "nothing"
            lines.append(f"{word}  {count:>13,}  {count / total:6.1%}  {groups}")
        return "\n".join(lines)


def parse(text: str, config: GPTConfig) -> Plan:
    """The plan that a strategy such as `"first6"` stands for in a model of this shape.

    Raises:
        InputError: an unknown strategy (the grammar is in the message), or one that leaves nothing to train.
    """
    if found := re.fullmatch(r"(first|last)(\d{1,6})", text):
        kind, n, L = found[1], int(found[2]), config.n_layer
        if n > L:
            raise InputError(f"--freeze={text}: the model has only {L} blocks")
        rules: Rules[str] = (
            ((EMBEDDINGS, FROZEN), (_blocks(range(n)), FROZEN), (".*", TRAIN))
            if kind == "first"
            else ((_blocks(range(L - n, L)), TRAIN), (r"(ln_f|lm_head)\..*", TRAIN), (".*", FROZEN))
        )
    elif text == "full":
        rules = ((".*", TRAIN),)
    elif text == "head":
        rules = ((r"tok_emb\..*" if config.tie_word_embeddings else r"lm_head\..*", TRAIN), (".*", FROZEN))
    elif text == "embeddings":
        rules = ((EMBEDDINGS, TRAIN), (".*", FROZEN))
    elif text.startswith("regex:"):
        rules = ((_pattern(text), TRAIN), (".*", FROZEN))
    else:
        raise InputError(f"--freeze={text}: unknown strategy\n{GRAMMAR}")
    plan = Plan(text, rules)
    names = [row.ours for row in JAXGPT.expand(config)]
    if TRAIN not in match(rules, names).values():
        raise InputError(f"--freeze={text}: nothing would train; parameters are named like {', '.join(names[:3])}")
    return plan


def optimizer(plan: Plan, params: Any, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` for what trains and zero updates for what is frozen, as `optax.multi_transform` over the plan's labels.

    `params` is a pytree of named parameters: a model, or a dict by name, whole or its trainable part alone. State is
    kept for what trains only. Anything that reads all gradients, such as a clip by global norm, belongs into `tx`.
    """
    paths = [name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    labels = plan.labels(dict.fromkeys(paths))
    tree = jax.tree_util.tree_map_with_path(lambda path, _: labels[name_of(path)], params)
    return optax.multi_transform({TRAIN: tx, FROZEN: optax.set_to_zero()}, lambda _: tree)


def name_of(path: tuple) -> str:
    """A parameter's dotted name from its path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _blocks(numbers: range) -> str:
    return rf"blocks\.({'|'.join(map(str, numbers))})\..*" if numbers else r"(?!)"


def _pattern(text: str) -> str:
    pattern = text.removeprefix("regex:")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"--freeze={text}: not a regular expression ({error})\n{GRAMMAR}") from None
    return pattern


def _groups(part: Mapping[str, Any], params: Mapping[str, Any], config: GPTConfig) -> str:
    """`tok_emb (also the head: tied), blocks.0-5`: neighbouring blocks joined, incomplete modules marked."""
    whole, here = Counter(map(_module, params)), Counter(map(_module, part))

    def mark(module: str) -> str:
        tied = " (also the head: tied)" if module == "tok_emb" and config.tie_word_embeddings else ""
        return tied + (f" ({here[module]} of {whole[module]} tensors)" if here[module] < whole[module] else "")

    runs: list[tuple[str, str, str]] = []  # first and last module, and how they are marked
    for module in (module for module in whole if here[module]):
        if runs and module == _next_block(runs[-1][1]) and mark(module) == runs[-1][2]:
            runs[-1] = (runs[-1][0], module, runs[-1][2])
        else:
            runs.append((module, module, mark(module)))
    return ", ".join(
        first + (f"-{last.removeprefix('blocks.')}" if last != first else "") + marked for first, last, marked in runs
    )


def _next_block(module: str) -> str | None:
    return f"blocks.{int(module.removeprefix('blocks.')) + 1}" if module.startswith("blocks.") else None


def _module(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
