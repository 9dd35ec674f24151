"""The grammar of freezing strategies, and the plans that they stand for."""

import re

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.errors import InputError, did_you_mean
from jaxgpt.freeze.plan import FROZEN, Phase, Plan
from jaxgpt.params import Rules, match
from jaxgpt.patterns import Pattern

GRAMMAR = r"""A freezing strategy is one of
  full            everything trains
  firstN          the embeddings and the first N blocks are frozen, as in first6
  lastN           only the last N blocks, ln_f and an untied head train, as in last3
  head            only the head trains; a tied head is the token embedding
  embeddings      only the token and position embeddings train
  regex:PATTERN   only parameters whose whole name matches train, as in regex:blocks\.\d+\.mlp\..*
  gradual         thaws from the top: head, the last quarter of the blocks, everything; a third of the steps each
  gradual:A@0,B@200,C@60%
                  A trains from the start, B as well after 200 steps, C as well after 60 % of all steps (2ep: after two
                  epochs)"""

NAMES = ("full", "head", "embeddings", "gradual")
"""Strategies without a number or a pattern."""

EMBEDDINGS = r"(tok_emb|pos_emb)\..*"


def parse(text: str, config: GPTConfig, steps: int | None = None, *, epoch_steps: float | None = None) -> Plan:
    """Return the plan that a strategy such as `"first6"` stands for in a model of this config.

    Args:
        steps: length of the training, which a gradual unfreeze by thirds or percent needs.
        epoch_steps: steps in an epoch, which one by epochs needs.

    Raises:
        InputError: an unknown strategy (the grammar is in the message), or a phase that has no effect.
    """
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
                f"strategy {text!r}: the first phase must begin at 0, and each later one after the one before it, not "
                f"{name} at {after}"
            )
        if steps is not None and phase.start >= steps:
            raise InputError(f"strategy {text!r}: {name} would begin after the last of {steps:,} steps")
        phases.append(phase)
    return Plan(text, tuple(phases))


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
            f"strategy {text!r}: phases are written STRATEGY@START and joined by commas", *GRAMMAR.split("\n")
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
        raise InputError(f"strategy {text!r}: needs the number of steps")
    if unit == "/3" and steps < 3:
        raise InputError(f"strategy {text!r}: needs at least 3 steps, one for each phase, not {steps}")
    return round(float(number) * steps / 100) if unit == "%" else int(number) * steps // 3


def rules(text: str, name: str, config: GPTConfig) -> Rules[bool]:
    """Return what a strategy thaws, as rules over parameter names."""
    rest = ((".*", False),)
    if found := re.fullmatch(r"(first|last)(\d{1,6})", name):
        kind, n, L = found[1], int(found[2]), config.n_layer
        if n > L:
            raise InputError(f"strategy {text!r}: the model has only {L} blocks")
        if kind == "first":
            return (EMBEDDINGS, False), (_blocks(range(n)), False), (".*", True)
        return (_blocks(range(L - n, L)), True), (r"(ln_f|lm_head)\..*", True), *rest
    if name == "full":
        return ((".*", True),)
    if name == "head":
        return (r"tok_emb\..*" if config.tie_word_embeddings else r"lm_head\..*", True), *rest
    if name == "embeddings":
        return (EMBEDDINGS, True), *rest
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
