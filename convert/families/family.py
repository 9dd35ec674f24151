"""A family of models in transformers: what its `config.json` says, in our words."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.convert.config import MAX_LAYERS, GPTConfig
from jaxgpt.convert.dialect import Dialect
from jaxgpt.convert.errors import InputError

Fields = dict[str, Any]
"""A parsed `config.json`, or a part of one."""


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def n_blocks(value: Any) -> int:
    """Return a number of blocks that a `config.json` states, before a list of their length is made.

    Raises:
        InputError: it is none, or too large.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_LAYERS:
        raise InputError(f"config.json: {reprlib.repr(value)} is no number of blocks")
    return value


def window_size(value: Any) -> int:
    """Return a window that a `config.json` states, 0 for none.

    Raises:
        InputError: it is none.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(f"config.json: a window must be an integer above 0, not {reprlib.repr(value)}")
    return value or 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """The table of a family's `config.json`. A field that it does not name is kept for the export, or refused."""

    model_type: str
    architecture: str
    """Its class with a language model's head."""
    title: str
    """Its name, and of models that people know."""
    dialect: Dialect
    """How it names and lays out its tensors."""
    fields: dict[str, tuple[str, Any]]
    """Fields that we honour: their name, our name, and the default of transformers."""
    fixed: Fields = field(default_factory=dict)
    """Fields of ours that are the same in all its models."""
    read_together: tuple[str, ...] = ()
    """Fields that say together what no single one says."""
    read: Callable[[Fields], Fields] = _nothing
    """Return what those say in our fields. It is given all fields, with the defaults of `fields`."""
    written: Callable[[GPTConfig], Fields] = _nothing
    """Return those for a config of ours."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of fields; if both are given they must agree."""
    at_default: dict[str, tuple] = field(default_factory=dict)
    """Fields that would change what the model computes: accepted at these values only."""
    irrelevant: frozenset[str] = frozenset()
    """Fields that change nothing in the logits, beside those of all families."""

    @property
    def known(self) -> set[str]:
        """All fields that it knows."""
        return {*self.fields, *self.read_together, *self.aliases, *self.at_default, *self.irrelevant}
