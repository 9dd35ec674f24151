"""A family of models in transformers: what its `config.json` says, in our words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import Dialect

Fields = dict[str, Any]
"""A parsed `config.json`, or a part of one."""


def _nothing(_: Any) -> dict[str, Any]:
    return {}


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
