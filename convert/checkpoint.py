"""A checkpoint on disk of any format and dialect, opened lazily."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxgpt.convert.base import Base
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.contents import open_contents
from jaxgpt.convert.dialect import Dialect, Tensors
from jaxgpt.convert.errors import InputError, about
from jaxgpt.convert.layout import Shape
from jaxgpt.convert.mapping import to_ours
from jaxgpt.convert.peft import base_of, with_adapter
from jaxgpt.convert.recognise import recognise
from jaxgpt.convert.source import is_adapter, resolve, tokenizer_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; its tensors are read only when a parameter is used."""

    path: Path
    """Where its tokenizer is: its own place, or that of its adapter."""
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
    adapter: Path | None = None
    """The folder of an adapter that is not one of the checkpoint's own."""
    weights: Path = Path()
    """Where its own parameters are."""
    own: Tensors = field(default_factory=dict)
    """Our parameters as they are in the file itself, without that adapter."""
    base: Base | None = None
    """Where the other parameters of a run's checkpoint are: in the model that the run began as."""
    told: dict[str, Any] = field(default_factory=dict)
    """How the file was read: `dialect` and the like."""


def read(
    source: str | Path,
    *,
    dialect: str | None = None,
    n_head: int | None = None,
    activation: str | None = None,
    drop_heads: bool = False,
    adapter: str | Path | None = None,
    averaged: bool = False,
) -> Checkpoint:
    """Open a checkpoint, and log what was left out, ignored or assumed.

    Args:
        source: a Hugging Face folder, a `.safetensors`, `.pt`, `.pth`, `.bin`, `.pkl` or `.msgpack` file, an Orbax
            folder, a training run (its newest checkpoint), or a hub name with or without a revision, `"gpt2"` or
            `"gpt2@main"`; or an adapter of PEFT's, which says for which model of the hub it is.
        dialect: one of `convert.dialects.DIALECTS`; detected by default.
        n_head: the number of heads, needed where the file has tensors only.
        activation: the activation function, needed where neither config nor dialect states it.
        drop_heads: leave other heads behind, such as a classifier's or a value head, and read the language model.
        adapter: an adapter of PEFT's for this model, a folder or a hub name.
        averaged: of a run that kept a moving average of what trains, read that.

    Raises:
        InputError: there is no checkpoint, or a part of it is unknown.
    """
    found = open_checkpoint(
        source, adapter=adapter, dialect=dialect, n_head=n_head, activation=activation, drop_heads=drop_heads,
        averaged=averaged,
    )  # fmt: skip
    for note in found.notes:
        log.warning("%s: %s", found.path, note)
    return found


def open_checkpoint(source: str | Path, *, adapter: str | Path | None = None, **told: Any) -> Checkpoint:
    """Open a checkpoint as `read` does, and log nothing."""
    path = resolve(source)
    if adapter is None and is_adapter(path):
        adapter, path = path, resolve(base_of(path))
    base = _open(path, **told)
    if adapter is None:
        return base
    folder = resolve(adapter)
    params, config = with_adapter(base.params, base.config, folder)
    path = folder if tokenizer_files(folder) else base.path
    return replace(base, path=path, params=params, config=config, adapter=folder)


def _open(path: Path, *, is_base: bool = False, averaged: bool = False, **told: Any) -> Checkpoint:
    contents = open_contents(path, averaged=averaged)
    if contents.base is not None:
        if is_base:
            raise InputError(
                f"{path} can't be the base model: it is a checkpoint that itself holds only what its run trained; "
                "put a model there that holds all parameters"
            )
        contents = replace(contents, tensors=_left_in(contents.base, path) | dict(contents.tensors))
    with about(str(path)):
        found = recognise(contents, **told)
        params, config = to_ours(found.dialect, found.tensors, found.config)
    buffers = found.dialect.buffers_in(found.dialect.bare_names(found.tensors), config)
    return Checkpoint(
        path, contents.format, found.dialect, found.reason, config, found.tensors, params, buffers, found.notes,
        weights=path, own=params, base=contents.base, told=told | ({"averaged": True} if averaged else {}),
    )  # fmt: skip


def _left_in(base: Base, path: Path) -> dict[str, Any]:
    """Return the parameters that a checkpoint leaves in its base, each compared with its digest when it is read.

    Raises:
        InputError: the base is gone, or is another model.
    """
    place = base.place(path)
    with about(f"{path}: holds only what trained; the rest is in the model that the run began as, which can't be read"):
        found = _open(resolve(place), is_base=True, **base.told)
        if missing := base.digests.keys() - found.own.keys():
            raise InputError(
                f"{place} has no {min(missing)}: it is not the model that was there when the run began; put that one "
                "back, or copy it to RUN/base"
            )
    return {name: base.checked(name, found.own[name], place) for name in base.digests}
