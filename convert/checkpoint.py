"""A checkpoint on disk of any format and dialect, opened lazily."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.contents import open_contents
from jaxgpt.convert.dialect import Dialect, Tensors
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.layout import Shape
from jaxgpt.convert.mapping import to_ours
from jaxgpt.convert.recognise import recognise
from jaxgpt.convert.source import resolve


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


def read(
    source: str | Path, *, dialect: str | None = None, n_head: int | None = None, activation: str | None = None
) -> Checkpoint:
    """Open a checkpoint.

    Args:
        source: a Hugging Face folder, a `.safetensors`, `.pt`, `.pth`, `.bin` or `.pkl` file, an Orbax folder, a
            training run (its newest checkpoint), or a hub name with or without a revision, `"gpt2"` or `"gpt2@main"`.
        dialect: one of `convert.dialects.DIALECTS`; detected by default.
        n_head: the number of heads, needed where the file has tensors only.
        activation: the activation function, needed where neither config nor dialect states it.

    Raises:
        InputError: there is no checkpoint, or a part of it is unknown.
    """
    path = resolve(source)
    contents = open_contents(path)
    try:
        found = recognise(contents, dialect=dialect, n_head=n_head, activation=activation)
        params, config = to_ours(found.dialect, found.tensors, found.config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    buffers = found.dialect.buffers_in(found.dialect.bare_names(found.tensors), config)
    return Checkpoint(path, contents.format, found.dialect, found.reason, config, found.tensors, params, buffers)
