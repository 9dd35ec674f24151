"""A checkpoint on disk of any format and dialect, opened lazily."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.contents import open_contents
from jaxgpt.convert.dialect import Dialect, Tensors
from jaxgpt.convert.errors import about
from jaxgpt.convert.layout import Shape
from jaxgpt.convert.mapping import to_ours
from jaxgpt.convert.recognise import recognise
from jaxgpt.convert.source import resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; its tensors are read only when a parameter is used."""

    path: Path
    format: str
    dialect: Dialect
    reason: str
    """Why this is the dialect."""
    config: GPTConfig
    tensors: Tensors
    """The file's tensors: name without wrappers -> array."""
    params: dict[str, Any]
    """Our parameters: dotted name -> array."""
    buffers: dict[str, Shape]
    """Tensors of the file that are not parameters, such as masks: name -> shape."""
    notes: tuple[str, ...] = ()
    """A sentence for each thing that was left out, ignored or assumed."""


def read(
    source: str | Path,
    *,
    dialect: str | None = None,
    n_head: int | None = None,
    activation: str | None = None,
    drop_heads: bool = False,
) -> Checkpoint:
    """Open a checkpoint, and log what was left out, ignored or assumed.

    Args:
        source: a Hugging Face folder, a `.safetensors`, `.pt`, `.pth`, `.bin`, `.pkl` or `.msgpack` file, an Orbax
            folder, a training run (its newest checkpoint), or a hub name with or without a revision, `"gpt2"` or
            `"gpt2@main"`.
        dialect: one of `convert.dialects.DIALECTS`; detected by default.
        n_head: the number of heads, needed where the file has tensors only.
        activation: the activation function, needed where neither config nor dialect states it.
        drop_heads: leave other heads behind, such as a classifier's or a value head, and read the language model.

    Raises:
        InputError: there is no checkpoint, or a part of it is unknown.
    """
    found = open_checkpoint(source, dialect=dialect, n_head=n_head, activation=activation, drop_heads=drop_heads)
    for note in found.notes:
        log.warning("%s: %s", found.path, note)
    return found


def open_checkpoint(source: str | Path, **told: Any) -> Checkpoint:
    """Open a checkpoint as `read` does, and log nothing."""
    path = resolve(source)
    contents = open_contents(path)
    with about(str(path)):
        found = recognise(contents, **told)
        params, config = to_ours(found.dialect, found.tensors, found.config)
    buffers = found.dialect.buffers_in(found.dialect.bare_names(found.tensors), config)
    return Checkpoint(
        path, contents.format, found.dialect, found.reason, config, found.tensors, params, buffers, found.notes
    )
