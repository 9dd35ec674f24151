"""The grammar of freezing strategies, and the plans that they stand for."""

import re
from dataclasses import replace
from typing import Any

from jaxgpt.convert.adapter import LoRA
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.errors import InputError, about, did_you_mean
from jaxgpt.freeze.plan import FROZEN, Phase, Plan
from jaxgpt.params import Rules, match
from jaxgpt.patterns import Pattern

GRAMMAR = r"""A freezing strategy is one of
  full            everything trains
  firstN          the embeddings and the first N blocks are frozen, as in first6
  lastN           only the last N blocks, ln_f and an untied head train, as in last3
  head            only the head trains; a tied head is the token embedding
  embeddings      only the token and position embeddings train
  biases          only biases train; norms: only norms
  regex:PATTERN   only parameters train whose whole name matches, as in regex:blocks\.\d+\.mlp\..*
  lora            low-rank adapters train, beside the frozen model: rank 8, on each block's q, k and v
  lora:r=16,alpha=32,on=attn+mlp,dropout=0.05,rslora,dora
                  the same with options (alpha is 2 r by default); on: qkv, attn, mlp, head, all, or a pattern over
                  names of layers, as in on=blocks\.[01]\.mlp\.fc1
  new-tokens      only the rows of added tokens train
  A+B             what A or B trains, as in lora+new-tokens
  gradual         thaws from the top: head, the last quarter of the blocks, everything; a third of the steps each
  gradual:A@0,B@200,C@60%
                  A trains from the start, B as well after 200 steps, C as well after 60 % of all steps (2ep: after two
                  epochs)"""

NAMES = ("full", "head", "embeddings", "biases", "norms", "lora", "new-tokens", "gradual")
"""Strategies without a number or a pattern."""

EMBEDDINGS, LORA, NEW = r"(tok_emb|pos_emb)\..*", r".*\.lora_[abm]", r"(tok_emb|lm_head)\.new"

SIMPLE = {
    "embeddings": EMBEDDINGS,
    "biases": r".*\.bias",
    "norms": r"(.*\.)?(ln_[12f]|[qk]_norm)\..*",
    "lora": LORA,
    "new-tokens": NEW,
}
"""Strategies that are one pattern over names."""

LORA_ON = {
    "qkv": r"blocks\.\d+\.attn\.(c_attn|[qkv]_proj)",
    "attn": r"blocks\.\d+\.attn\..*",
    "mlp": r"blocks\.\d+\.mlp\..*",
    "head": "lm_head",
    "all": r"blocks\..*",
}
"""Layers that may have an adapter, by the words of `on=`."""

NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{0,9})?(e[+-]?[0-9]{1,3})?")
"""A number in a strategy."""

LORA_OPTIONS = ("r", "alpha", "on", "dropout", "rslora", "dora")


def parse(text: str, config: GPTConfig, steps: int | None = None, *, epoch_steps: float | None = None) -> Plan:
    """Return the plan that a strategy such as `"first6"` stands for in a model of this config.

    Args:
        steps: length of the training, which a gradual unfreeze by thirds or percent needs.
        epoch_steps: steps in an epoch, which one by epochs needs.

    Raises:
        InputError: an unknown strategy (the grammar is in the message), or a phase that has no effect.
    """
    config = with_lora(text, config)
    names = [row.ours for row in JAXGPT.expand(config)]
    phases: list[Phase] = []
    for name, after in split_phases(text, config):
        phase = Phase(name, start_of(text, after, steps, epoch_steps), rules(text, name, config))
        thaws = {param for param, thawed in match(phase.rules, names).items() if thawed}
        if not thaws:
            raise InputError(
                f"strategy {text!r}: {name}: nothing would train; parameters are called, for example, "
                + ", ".join(names[:3])
            )
        if phases and all(label != FROZEN for label in Plan(text, tuple(phases)).labels(thaws, phase.start).values()):
            raise InputError(f"strategy {text!r}: phase {name} adds nothing: all its parameters train already")
        if phase.start <= phases[-1].start if phases else phase.start != 0:
            raise InputError(
                f"strategy {text!r}: {name} can't begin at {after}: the first phase must begin at 0, and every other "
                "phase later than the previous one"
            )
        if steps is not None and phase.start >= steps:
            raise InputError(f"strategy {text!r}: {name} would begin after the last of {steps:,} steps")
        phases.append(phase)
    return Plan(text, tuple(phases))


def check_strategy(text: str, config: GPTConfig) -> None:
    """Refuse a strategy that no model of this config has, before its parameters are read.

    Raises:
        InputError: as `parse`, for all that does not depend on the length of the training.
    """
    lora_of(text, config)
    with_new_tokens = replace(config, n_new_tokens=config.n_new_tokens or 1)  # which may still be added
    for name, _ in split_phases(text, config):
        rules(text, name, with_new_tokens)


def split_phases(text: str, config: GPTConfig) -> list[tuple[str, str]]:
    """Return the strategy of each phase, and when the phase begins, as they are written."""
    if text == "gradual":
        return [("head", "0"), (f"last{max(1, config.n_layer // 4)}", "1/3"), ("full", "2/3")]
    if not text.startswith("gradual:"):
        return [(text, "0")]
    # a pattern may hold commas and @: a phase ends at an @ and a number before a comma or the end
    rest = text.removeprefix("gradual:")
    *pairs, end = re.split(r"@([0-9]{1,9}(?:\.[0-9]{1,9})?(?:%|ep)?)(?:,|$)", rest)
    if end or rest.endswith(",") or not all(pairs) or not pairs:
        raise InputError(
            f"strategy {text!r}: phases are written gradual:STRATEGY@START,…, as in gradual:head@0,last3@40%",
            *GRAMMAR.split("\n"),
        )
    return [(name.strip(), after) for name, after in zip(pairs[::2], pairs[1::2], strict=True)]


def start_of(text: str, after: str, steps: int | None, epoch_steps: float | None) -> int:
    """Return the number of steps after which a phase begins."""
    unit = after.lstrip("0123456789.")
    number = after.removesuffix(unit)
    if not unit:
        if "." in number:
            raise InputError(f"strategy {text!r}: {after} is not an integer number of steps")
        return int(number)
    if unit == "ep":
        if epoch_steps is None:
            raise InputError(f"strategy {text!r}: {after} needs epoch_steps, the number of steps in an epoch")
        return round(float(number) * epoch_steps)
    if steps is None:
        raise InputError(f"strategy {text!r}: needs steps, the number of steps of the training")
    if unit == "/3" and steps < 3:
        raise InputError(f"strategy {text!r}: needs at least 3 steps (one for each phase), not {steps}")
    return round(float(number) * steps / 100) if unit == "%" else int(number) * steps // 3


def rules(text: str, name: str, config: GPTConfig) -> Rules[bool]:
    """Return what a strategy thaws, as rules over parameter names."""
    parts = split_parts(name)
    if len(parts) > 1:
        patterns = (_as_pattern(rules(text, part, config)) for part in parts)
        return (f"(?:{'|'.join(patterns)})", True), (".*", False)
    if name == "full":
        return ((".*", True),)
    if name.startswith("lora:"):
        return (LORA, True), (".*", False)
    if name == "new-tokens" and not config.n_new_tokens:
        raise InputError(f"strategy {text!r}: no tokens were added to the model (add_tokens=), so that none are new")
    if name in SIMPLE:
        return (SIMPLE[name], True), (".*", False)
    return (LORA, False), *_rules_over_blocks(text, name, config)


def split_parts(name: str) -> list[str]:
    """Return the strategies that are joined by `+`; a pattern, and what an adapter is `on`, may have one of its own."""
    parts: list[str] = []
    for word in name.split("+"):
        last = parts[-1] if parts else ""
        is_strategy = word in {*NAMES} - {"head"} or re.fullmatch(r"(first|last)[0-9]+|regex:.*", word)
        if last.startswith("regex:") or (last.startswith("lora:") and "on=" in last and not is_strategy):
            parts[-1] += f"+{word}"
        else:
            parts.append(word)
    return parts


def _as_pattern(of: Rules[bool]) -> str:
    """Return one pattern that matches the names for which the rules say true."""
    pattern = "(?!)"
    for one, thaws in reversed(of):
        pattern = f"(?:{one}|{pattern})" if thaws else rf"(?!(?:{one})\Z)(?:{pattern})"
    return pattern


def with_lora(text: str, config: GPTConfig) -> GPTConfig:
    """Return the config with the adapters that a strategy names, unless the model has them.

    Raises:
        InputError: it has other ones.
    """
    lora = lora_of(text, config)
    if lora is None or config.lora == lora:
        return config
    if config.lora is not None:
        raise InputError(
            f"strategy {text!r}: the model already has other adapters, of rank {config.lora.r}; plain `lora` trains "
            "those"
        )
    return replace(config, lora=lora)


def lora_of(text: str, config: GPTConfig) -> LoRA | None:
    """Return the adapter that a strategy names, if it does; `lora` alone is the one that the model has, if it has one.

    Raises:
        InputError: it names several, or one that does not fit the model.
    """
    parts = {part for name, _ in split_phases(text, config) for part in split_parts(name)}
    found = sorted(part for part in parts if part == "lora" or part.startswith("lora:"))
    if not found:
        return None
    if len(found) > 1:
        raise InputError(f"strategy {text!r}: {found[0]} and {found[1]}: a model has one kind of adapter")
    if found[0] == "lora" and config.lora is not None:
        return config.lora
    with about(f"strategy {text!r}"):
        return _parse_lora(found[0].removeprefix("lora").removeprefix(":"), config)


def names_new_tokens(text: str) -> bool:
    """Tell whether a strategy names the rows of new tokens."""
    return re.search(r"(^|[:,+])new-tokens($|[@+])", text) is not None


def _parse_lora(options: str, config: GPTConfig) -> LoRA:
    told: dict[str, Any] = {}
    for option in filter(None, re.split(r",(?=(?:r|alpha|on|dropout)=|(?:rslora|dora)(?:,|$))", options)):
        name, is_given, value = option.partition("=")
        if name in told:
            raise InputError(f"{name} is given twice")
        if name in ("rslora", "dora") and not is_given:
            told[name] = True
        elif name == "on" and is_given:
            told[name] = value
        elif name in ("r", "alpha", "dropout") and is_given:
            if not NUMBER.fullmatch(value) or (name == "r" and not value.isdecimal()):
                kind = "an integer" if name == "r" else "a number"
                raise InputError(f"lora: {name} must be {kind}, not {value[:60]!r}")
            told[name] = int(value) if name == "r" else float(value)
        else:
            unknown = f"lora: unknown option {option!r}{did_you_mean(name, LORA_OPTIONS)}"
            raise InputError(unknown, *GRAMMAR.split("\n"))
    on = told.pop("on", "qkv")
    told.setdefault("alpha", 2.0 * told.get("r", 8))
    layers = [row.ours.removesuffix(".kernel") for row in JAXGPT.expand(config) if row.ours.endswith(".kernel")]
    words = on.split("+") if {*on.split("+")} <= LORA_ON.keys() else [on]
    with about(f"lora: on={on}"):
        modules = {name for word in words for name in Pattern(LORA_ON.get(word, word)).matching(layers)}
    if not modules:
        tied = "; a tied head has no kernel of its own" if on == "head" else ""
        raise InputError(f"lora: on={on} is no layer of the model{tied}; a layer is called, for example, {layers[0]}")
    return LoRA(**told, modules=tuple(name for name in layers if name in modules))


def _rules_over_blocks(text: str, name: str, config: GPTConfig) -> Rules[bool]:
    rest = ((".*", False),)
    if found := re.fullmatch(r"(first|last)([0-9]{1,6})", name):
        kind, n, L = found[1], int(found[2]), config.n_layer
        if n > L:
            raise InputError(f"strategy {text!r}: the model has only {L} blocks")
        if kind == "first":
            return (EMBEDDINGS, False), (_blocks(range(n)), False), (".*", True)
        return (_blocks(range(L - n, L)), True), (r"(ln_f|lm_head)\..*", True), *rest
    if name == "head":
        return (r"tok_emb\..*" if config.tie_word_embeddings else r"lm_head\..*", True), *rest
    if not name.startswith("regex:"):
        which = "" if name == text else f"{name!r}: "
        raise InputError(f"strategy {text!r}: {which}unknown strategy{_alike(name, config)}", *GRAMMAR.split("\n"))
    pattern = name.removeprefix("regex:")
    try:
        Pattern(pattern)
    except InputError as error:
        raise InputError(f"strategy {text!r}: {error}", *GRAMMAR.split("\n")) from None
    return (pattern, True), *rest


def _alike(name: str, config: GPTConfig) -> str:
    """Suggest a strategy whose name is like an unknown one."""
    if name in ("first", "last"):
        return ", which needs a number"
    numbered = [f"{kind}{n}" for kind in ("first", "last") for n in range(config.n_layer + 1)]
    return did_you_mean(name, [*NAMES, *numbered])


def _blocks(numbers: range) -> str:
    return rf"blocks\.({'|'.join(map(str, numbers))})\..*" if numbers else r"(?!)"
