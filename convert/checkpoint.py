"""A checkpoint on disk, opened lazily whatever its format and dialect."""

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
    """An opened checkpoint: nothing of its tensors is read until a parameter is."""

    path: Path
    format: str
    dialect: Dialect
    reason: str
    """What the dialect was recognised by."""
    config: GPTConfig
    tensors: Tensors
    """Theirs: name in the file, without wrappers -> array."""
    params: dict[str, Any]
    """Ours: dotted name -> array."""
    buffers: dict[str, Shape]
    """Tensors that are no parameters, and are left out."""


def read(
    source: str | Path, *, dialect: str | None = None, n_head: int | None = None, activation: str | None = None
) -> Checkpoint:
    """Opens a checkpoint.

    Args:
        source: a Hugging Face folder, a `.safetensors`, `.pt`, `.pth`, `.bin` or `.pkl` file, an Orbax folder, a
            training run (its newest checkpoint), or a hub name with or without a revision, `"gpt2"` or `"gpt2@main"`.
        dialect: one of `convert.recognise.DIALECTS`, where it is recognised wrongly.
        n_head: the number of heads, where nothing but tensors is there.
        activation: the activation function, where neither config nor dialect tells.

    Raises:
        InputError: nothing is there, or not all of what is there is understood.
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
