"""From the names in a file to those of a language model: wrappers are taken off, and what is no part of it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxgpt.convert.dialect import Dialect, Tensors
from jaxgpt.convert.dialects import DIALECTS
from jaxgpt.convert.errors import InputError

WRAPPERS = frozenset(
    "_orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module _fpw_module _module module".split()
)
"""Parts of a name that torch.compile, FSDP, activation checkpointing, Lightning's Fabric, fairscale, Opacus, and
DataParallel or DeepSpeed add, around the whole model or any module in it."""

POSITIONS = re.compile(
    r"(?P<outer>(?:[^.]+\.)*)"
    r"(wpe\.weight|wpe\.embedding|position_embedding_table\.weight|pos_emb(\.weight|\.embedding)?)"
)
"""A tensor that each language model here has once: what stands before it is the model's place in the file."""

BODY = "transformer."
"""The part of the place that belongs to the model: its head lies beside it."""

OUTERMOST = ("base_model.model.", "model.", "base_model.")
"""Wrappers of a whole model, where a file has no positions by which its place could be found."""

HEADS = (
    (r"score\.", "the head of a sequence classifier, such as GPT2ForSequenceClassification"),
    (r"(classifier|classification_head)\.", "the head of a classifier, such as GPT2ForTokenClassification"),
    (r"qa_outputs\.", "the head that finds answers, of GPT2ForQuestionAnswering"),
    (r"multiple_choice_head\.", "the multiple-choice head of GPT2DoubleHeadsModel"),
    (r"(v|value|values|critic|vf)_head\.", "a value head, such as that of trl's AutoModelForCausalLMWithValueHead"),
    (r"(reward|rm|rank|regression)_?head\.", "the head of a reward model"),
    (r"(?!lm_head\.)\w+_head\.", "a head for something else than the next token"),
)
"""Names of heads that no language model has, and what they are."""


@dataclass(frozen=True)
class Unwrapped:
    """The tensors of a language model by its own names, and what else is in the file."""

    tensors: dict[str, Any]
    heads: dict[str, str] = field(default_factory=dict)
    """Names and shapes of other heads, and what each is."""
    left_out: tuple[str, ...] = ()
    """Names and shapes of what is no parameter of any model, such as the state of a metric."""


def unwrap(tensors: Tensors, dialect: Dialect | None = None, *, keeps_all: bool = False) -> Unwrapped:
    """Find the language model among the tensors of a file, and give each its name without what wraps it.

    Args:
        tensors: by their names in the file.
        dialect: one that is given, whose names count beside those of the built-in ones.
        keeps_all: take nothing for another head, or for no part of the model, as its names are not known yet.

    Raises:
        InputError: there are several models, or tensors that belong to none.
    """
    bare = _renamed(tensors, lambda name: ".".join(part for part in name.split(".") if part not in WRAPPERS))
    places = {_place(found["outer"]): name for name in bare if (found := POSITIONS.fullmatch(name))}
    is_own = keeps_all or (dialect is not None and all(dialect is not known for known in DIALECTS.values()))
    if len(places) > 1 and not is_own:
        first, second, *_ = places.values()
        raise InputError(
            f"it holds {first} and {second}: two models in one file? Save the state dict of one of them alone"
        )
    place = next(iter(places), None)
    if place is None or is_own:  # a table of the user's may have its positions anywhere
        shared = (outer for outer in (*places, *OUTERMOST) if bare and all(name.startswith(outer) for name in bare))
        place = next(shared, "")
    names = _names_of([*DIALECTS.values(), *([] if dialect is None else [dialect])])
    parts = {name.partition(".")[0] for name in names}
    inside: dict[str, Any] = {}
    heads: dict[str, str] = {}
    left_out: list[str] = []
    for name, array in bare.items():
        own = name.removeprefix(place)
        shown = f"{name} {tuple(array.shape)}"
        is_inside = name.startswith(place)
        if keeps_all and is_inside:
            inside[_once(own, inside)] = array
        elif own not in names and (what := _head(own)):
            heads[shown] = what
        elif not (is_inside and own.partition(".")[0] in parts) and _is_no_parameter(name, array):
            left_out.append(shown)
        elif is_inside:
            inside[_once(own, inside)] = array
        elif re.search(r"(^|\.)lm_head\.weight$", name):  # beside a body that has a place of its own
            inside[_once("lm_head.weight", inside)] = array
        else:
            raise InputError(
                f"under {place!r} the file holds a model, and outside of it {shown}, which does not belong to that "
                "model. Save the state dict of the model alone"
            )
    return Unwrapped(_renamed(inside, _new_norm_name), heads, tuple(left_out))


def _names_of(dialects: Sequence[Dialect]) -> set[str]:
    """Return the names that dialects have, with `{i}` for the number of a block, and their prefixes."""
    rows = {name for dialect in dialects for row in dialect.rows for name in row.names}
    buffers = {name for dialect in dialects for name, _ in dialect.buffers}
    return rows | buffers | {dialect.prefix for dialect in dialects if dialect.prefix}


def _place(outer: str) -> str:
    return outer.removesuffix(BODY)


def _head(name: str) -> str | None:
    """Return what kind of head a tensor belongs to that is no part of a block."""
    if re.search(r"(^|\.)(h|blocks|layers)\.\d+\.", name):
        return None
    return next((what for pattern, what in HEADS if re.search(rf"(^|\.){pattern}", name)), None)


def _is_no_parameter(name: str, array: Any) -> bool:
    """Tell whether a tensor holds one number or whole numbers, as the state of a metric does and no weight."""
    may_compute = re.search(r"scal|temperature|alpha|gate", name.lower())
    return np.dtype(array.dtype).kind in "biu" or (tuple(array.shape) in ((), (1,)) and not may_compute)


def _new_norm_name(name: str) -> str:
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _renamed(tensors: Tensors, rename: Any) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, array in tensors.items():
        renamed[_once(rename(name), renamed)] = array
    return renamed


def _once(name: str, taken: Iterable[str]) -> str:
    if name in taken:
        raise InputError(f"{name} appears twice, under its old name and its new one, or in a wrapper and without")
    return name
